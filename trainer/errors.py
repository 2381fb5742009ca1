"""Errors that end the trainer. Each has an exit code."""

from trainer.records import Suspects


class TrainerError(Exception):
    """Base class. The message explains the error to the user."""

    exit_code = 1


class UnusableInput(TrainerError):
    """The recipe, the run directory, the base model or the parent adapter cannot be used."""

    exit_code = 2


class RecipeError(UnusableInput):
    """The recipe has invalid keys or values. `problems` lists all of them."""

    def __init__(self, where: str, problems: list[str]) -> None:
        self.problems = problems
        super().__init__(f"{where} cannot be used:\n" + "\n".join(f"  - {problem}" for problem in problems))


class MissingTool(TrainerError):
    """A program that the user has to install is missing."""

    exit_code = 3


class ClusterFailed(TrainerError):
    """The cluster cannot be reached, or has too few machines. A later start may find it in order."""


class ShareNotSaved(TrainerError):
    """A process could not write its share of a checkpoint. A later start goes on from the one before."""


class StepFailed(TrainerError):
    """A step or an evaluation failed."""

    def __init__(self, message: str, suspects: Suspects | None = None) -> None:
        self.suspects = suspects
        """Rows that may be the cause, if any."""
        super().__init__(message)


class OutOfMemory(StepFailed):
    """The device ran out of memory even with the smallest micro-batch."""

    exit_code = 3


class Diverged(StepFailed):
    """The loss is not finite."""

    exit_code = 4


class Stopped(TrainerError):
    """The run was asked to stop. A later start resumes it."""

    exit_code = 75
