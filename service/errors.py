"""Errors that end a command. Each has an exit code."""


class ServiceError(Exception):
    """Base class. The message explains the error to the user."""

    exit_code = 1


class SettingsError(ServiceError):
    """Invalid settings. `problems` lists all of them."""

    exit_code = 2

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("invalid settings:\n" + "\n".join(f"  - {problem}" for problem in problems))


class UsageError(ServiceError):
    """Invalid arguments of a command."""

    exit_code = 2


class PreconditionError(ServiceError):
    """The machine is not ready: port in use, another service in the folder, no database."""

    exit_code = 3
