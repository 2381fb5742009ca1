"""Refuses tasks that an evaluation uses: a model that was trained on them would only look better.

A task is refused if a benchmark has a task of the same name, of the same prompt, or with a run of words that is in no
other of its tasks (service/admission/contamination.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from service.admission.contamination import Benchmarks, Task, read_tasks
from service.errors import PreconditionError, UsageError

MBPP_TRAIN, MBPP_TEST = range(601, 975), range(11, 511)
"""Numbers of MBPP's tasks that are trained on, and that an evaluation uses (trainer/evaluate/suites.py)."""
NAMED = 10
"""Tasks that a message names."""


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """A task that must not be trained on."""

    task: str
    reason: str


def check_overlap(
    tasks: Path, split: str | None, *, evaluated: Sequence[Path], benchmarks: Sequence[Path], gram_words: int
) -> None:
    """Check that no task is in an evaluation.

    Args:
        split: of MBPP. None: train
        evaluated: benchmarks of which an evaluation uses MBPP's test split, or all tasks of another form
        benchmarks: benchmarks whose tasks must not be trained on at all

    Raises:
        UsageError: some are (names them), or a file cannot be read.
    """
    mine = [task for task in _read(tasks, "--tasks") if _in_split(task, split or "train")]
    found: dict[str, Overlap] = {}
    for path in (*evaluated, *benchmarks):
        theirs = [
            task
            for task in _read(path, "--evaluate, hygiene.benchmarks or evaluation.suites")
            if path in benchmarks or _in_split(task, "test")
        ]
        for overlap in _overlaps(mine, theirs, path, gram_words):
            found.setdefault(overlap.task, overlap)
    if found:
        shown = "; ".join(f"{one.task} ({one.reason})" for one in list(found.values())[:NAMED])
        more = f", and {len(found) - NAMED} more" if len(found) > NAMED else ""
        raise UsageError(
            f"--tasks: {len(found)} of {len(mine)} tasks are in a benchmark that measures the model: {shown}{more}. "
            "Remove them from the tasks, or the benchmark from --evaluate, hygiene.benchmarks or evaluation.suites. "
            "To train on MBPP's training part, list a file with its test part only"
        )


def _read(path: Path, where: str) -> list[Task]:
    try:
        return list(read_tasks(path))
    except PreconditionError as error:
        problem = str(error).partition(". Correct ")[0]
        raise UsageError(f"{problem}. Correct the file, or name another one ({where})") from error


def _overlaps(mine: Sequence[Task], theirs: Sequence[Task], path: Path, gram_words: int) -> Iterator[Overlap]:
    names = {task.name for task in theirs}
    prompts = {_plain(task.texts[0].removesuffix(task.solution)) for task in theirs}
    known = Benchmarks([str(path)], gram_words, only={task.name for task in theirs})
    for task in mine:
        if task.name in names:
            yield Overlap(task=task.name, reason=f"the same name in {path}")
        elif _plain(task.texts[0].removesuffix(task.solution)) in prompts:
            yield Overlap(task=task.name, reason=f"the same prompt in {path}")
        elif any(known.reason(text) for text in task.texts):
            yield Overlap(task=task.name, reason=f"shares text with {path}")


def _in_split(task: Task, split: str) -> bool:
    """Whether a task belongs to a split. Only MBPP's tasks, which have numbers for names, have splits."""
    if split == "all" or not task.name.isdecimal():
        return True
    number = int(task.name)
    wanted = {"train": MBPP_TRAIN, "test": MBPP_TEST, "validation": range(511, 601), "few_shot": range(1, 11)}[split]
    return number in wanted or number > MBPP_TRAIN.stop - 1


def _plain(text: str) -> str:
    return " ".join(text.split())
