"""What the trainer can end with. Each error carries the exit code of its process."""

from trainer.records import Suspects


class TrainerError(Exception):
    """Base of every error that the trainer explains in one message."""

    exit_code = 1


class UnusableInput(TrainerError):
    """The recipe, the run directory, the base model or the parent adapter cannot be used as it is."""

    exit_code = 2


class RecipeError(UnusableInput):
    """The recipe has bad keys or values; `problems` lists every one of them."""

    def __init__(self, where: str, problems: list[str]) -> None:
        self.problems = problems
        super().__init__(f"{where} cannot be used:\n" + "\n".join(f"  - {problem}" for problem in problems))


class StepFailed(TrainerError):
    """A step, or an evaluation, cannot be done."""

    def __init__(self, message: str, suspects: Suspects | None = None) -> None:
        self.suspects = suspects
        """Rows that may be to blame; None where none is."""
        super().__init__(message)


class OutOfMemory(StepFailed):
    """The device ran out of memory at the smallest step."""

    exit_code = 3


class Diverged(StepFailed):
    """The loss stopped being a finite number."""

    exit_code = 4


class Stopped(TrainerError):
    """The run was asked to stop; a later start resumes it."""

    exit_code = 75
