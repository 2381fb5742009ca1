"""What a command can end with. Each error carries the exit code of its command."""


class ServiceError(Exception):
    """Base of every error that the service explains in one message."""

    exit_code = 1


class SettingsError(ServiceError):
    """Settings cannot be used; `problems` lists every one of them."""

    exit_code = 2

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("the settings cannot be used:\n" + "\n".join(f"  - {problem}" for problem in problems))


class UsageError(ServiceError):
    """What the command was asked for makes no sense."""

    exit_code = 2


class PreconditionError(ServiceError):
    """The machine is not ready for this: a port in use, another service in the same folder, no database."""

    exit_code = 3
