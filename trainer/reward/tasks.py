"""Which tasks are trained on, and which are only measured. (no torch)"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import UnusableInput
from trainer.evaluate.suites import Task, read_suite

HASH_RANGE = 1 << 32


@dataclass(frozen=True, kw_only=True)
class Tasks:
    """The tasks of a training on rewards."""

    training: tuple[Task, ...]
    held_out: tuple[Task, ...]
    """Measured in each round, and never trained on."""

    @property
    def all(self) -> tuple[Task, ...]:
        return (*self.training, *self.held_out)


def read_tasks(file: Path, split: str | None, *, held_out_fraction: float) -> Tasks:
    """Read a file's tasks and divide them.

    Raises:
        UnusableInput: the file cannot be read, has no task of the split, or has a single one.
    """
    found = read_suite(file)
    wanted = split or ("train" if any(task.split for task in found) else "all")
    chosen = [task for task in found if wanted == "all" or task.split == wanted]
    if not chosen:
        there = ", ".join(sorted({str(task.split) for task in found if task.split})) or "none: it is not MBPP"
        raise UnusableInput(
            f"--tasks {file} has no task of MBPP's split {wanted}. Its splits are {there}. Name one with --split"
        )
    if len(chosen) < 2:
        raise UnusableInput(f"--tasks {file} has one task. Two are needed: one is trained on, one is only measured")
    return divide(chosen, held_out_fraction)


def divide(tasks: Sequence[Task], held_out_fraction: float) -> Tasks:
    """Hold a share of the tasks out, by a hash of each task's name: more tasks later do not change it.

    At least one task is on each side.
    """
    ordered = sorted(tasks, key=lambda task: _place(task.task_id))
    count = sum(_place(task.task_id) < held_out_fraction * HASH_RANGE for task in ordered)
    held_out = {task.task_id for task in ordered[: min(max(count, 1), len(ordered) - 1)]}
    return Tasks(
        training=tuple(task for task in tasks if task.task_id not in held_out),
        held_out=tuple(task for task in tasks if task.task_id in held_out),
    )


def _place(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
