"""Finds training tasks that are also test tasks, or that hold a part of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from service.admission.contamination import Benchmarks
from service.experiment.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Training tasks that the test asks for, too."""

    training: int
    """Number of training tasks."""
    same: tuple[str, ...]
    """Training tasks with the id or the prompt of a test task."""
    leaking: tuple[str, ...]
    """Other training tasks with the solution of a test task, or with consecutive words that are its own."""
    gram_words: int
    """Number of consecutive words that count."""

    @property
    def is_test_trained(self) -> bool:
        """Whether the training tasks are test tasks, so that the pass rates are not those of new tasks."""
        return len(self.same) == self.training

    def sentence(self) -> str:
        """Return the finding in words."""
        if self.is_test_trained:
            return (
                f"all {self.training} training tasks are test tasks. THE PASS RATES ARE THOSE OF TRAINING TASKS: they "
                "say what was remembered, and nothing about new tasks"
            )
        if self.same:
            return (
                f"{len(self.same)} of {self.training} training tasks have the id or the prompt of a test task: "
                f"{_named(self.same)}. Remove them, or the pass rates are in part those of training tasks"
            )
        if self.leaking:
            return (
                f"{len(self.leaking)} of {self.training} training tasks have the solution of a test task, or "
                f"{self.gram_words} consecutive words that only one test task has: {_named(self.leaking)}"
            )
        return (
            f"none of {self.training} training tasks has the id, the prompt, the solution, or {self.gram_words} "
            "consecutive words of a test task"
        )


def overlap(training: Sequence[Task], test: Sequence[Task], test_file: Path, *, gram_words: int) -> Overlap:
    """Compare all training tasks with all test tasks.

    Raises:
        PreconditionError: the test file has neither HumanEval's nor MBPP's form.
    """
    ids, prompts = {task.task_id for task in test}, {" ".join(task.statement.split()) for task in test}
    same = [task for task in training if task.task_id in ids or " ".join(task.statement.split()) in prompts]
    benchmark = Benchmarks([str(test_file)], gram_words, only={task.name for task in test})
    others = [task for task in training if task not in same]
    leaking = [task for task in others if benchmark.reason(f"{task.prompt}{task.completion}")]
    return Overlap(
        training=len(training),
        same=tuple(task.task_id for task in same),
        leaking=tuple(task.task_id for task in leaking),
        gram_words=gram_words,
    )


def _named(tasks: Sequence[str]) -> str:
    return ", ".join(tasks[:5]) + (", …" if len(tasks) > 5 else "")
