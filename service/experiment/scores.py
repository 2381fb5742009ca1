"""pass@k of each model, the differences between two models, and how certain they are. The task is the unit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from service.errors import PreconditionError
from service.gate.interval import Array
from service.gate.power import detectable
from trainer.records import read_lines
from trainer.run_dir import RunDirectoryError

LEVEL, ALPHA, POWER = 0.95, 0.05, 0.8

Verdicts = Mapping[str, tuple[int, int]]
"""Task → answers, and those that passed."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A model's pass@k with its 95 % interval over tasks: Wilson's for shares, else Student's t."""

    k: int
    value: float
    low: float
    high: float
    tasks: int


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One model's pass@k minus another's, on the same tasks."""

    name: str
    other: str
    k: int
    difference: float
    low: float
    high: float
    """95 % interval: Student's t over the tasks' differences."""
    tasks: int
    deviation: float
    """Standard deviation of the tasks' differences."""
    detectable: float | None
    """The least difference that so many tasks show with a power of 80 %, at this deviation. None: it cannot be told."""

    @property
    def is_certain(self) -> bool:
        """Whether the interval leaves out 0. Without any deviation, nothing is certain."""
        return self.deviation > 0 and not self.low <= 0 <= self.high

    def sentence(self) -> str:
        """Say it in words."""
        what = f"pass@{self.k}: {self.name} − {self.other} = {100 * self.difference:+.1f} points"
        if self.deviation == 0:
            return f"{what}. It is not certain: all {self.tasks} tasks differ by the same amount, so nothing tells"
        interval = f"95 % interval {100 * self.low:+.1f} to {100 * self.high:+.1f}, {self.tasks} tasks"
        shows = "" if self.detectable is None else f"; so many tasks show {100 * self.detectable:.1f} points or more"
        if not self.is_certain:
            return f"{what} ({interval}{shows}). It is not certain: there may be no difference"
        better = "better" if self.difference > 0 else "worse"
        return f"{what} ({interval}{shows}). It is certain: {self.name} is {better} than {self.other}"


def read_verdicts(folder: Path, tasks: Sequence[str], samples: int) -> Verdicts:
    """Return the verdicts on the first answers to each task.

    Raises:
        PreconditionError: they cannot be read, or one is missing.
    """
    wanted, passed = set(tasks), dict.fromkeys(tasks, 0)
    answers = dict.fromkeys(tasks, 0)
    try:
        for line in read_lines(folder / "outcomes.jsonl"):
            if line["task_id"] in wanted and line["sample"] < samples:
                answers[line["task_id"]] += 1
                passed[line["task_id"]] += bool(line["passed"])
    except (RunDirectoryError, KeyError, TypeError) as error:
        raise PreconditionError(f"{folder} cannot be read ({error}). Choose another folder with --to") from error
    if missing := [task for task in tasks if answers[task] != samples]:
        raise PreconditionError(f"{folder} lacks verdicts on {len(missing)} tasks, such as {missing[0]}. Run it again")
    return {task: (answers[task], passed[task]) for task in tasks}


def pass_at_k(answers: int, passed: int, k: int) -> float:
    """Return the unbiased estimate of one task: 1 - C(answers - passed, k) / C(answers, k) (Chen et al. 2021)."""
    return 1.0 - math.comb(answers - passed, k) / math.comb(answers, k)


def rates(verdicts: Verdicts, ks: Sequence[int]) -> list[Rate]:
    """Return pass@k for each k that every task has enough answers for."""
    found = []
    for k in _possible(verdicts, ks):
        values = np.array([pass_at_k(*counts, k) for counts in verdicts.values()])
        low, high = _interval(values)
        found.append(Rate(k=k, value=float(values.mean()), low=low, high=high, tasks=len(values)))
    return found


def differences(name: str, mine: Verdicts, other: str, theirs: Verdicts, ks: Sequence[int]) -> list[Difference]:
    """Compare two models on the tasks of both, which must be the same."""
    assert mine.keys() == theirs.keys()
    found = []
    for k in _possible(mine, ks):
        values = np.array([pass_at_k(*mine[task], k) - pass_at_k(*theirs[task], k) for task in mine])
        half, mean = _half_width(values), float(values.mean())
        deviation = float(values.std(ddof=1)) if len(values) > 1 else 0.0
        deviation = 0.0 if deviation < 1e-12 else deviation
        found.append(
            Difference(
                name=name, other=other, k=k, difference=mean, low=mean - half, high=mean + half, tasks=len(values),
                deviation=deviation, detectable=detectable(deviation, len(values), power=POWER, alpha=ALPHA),
            )
        )  # fmt: skip
    return found


def _possible(verdicts: Verdicts, ks: Sequence[int]) -> list[int]:
    fewest = min(answers for answers, _ in verdicts.values())
    return [k for k in sorted(ks) if k <= fewest]


def _interval(values: Array) -> tuple[float, float]:
    """Return the interval of a mean from 0 to 1. Wilson's for shares and constants, which does not collapse there."""
    from scipy import stats

    mean, tasks = float(values.mean()), len(values)
    if tasks < 2 or np.ptp(values) == 0 or bool(np.isin(values, (0.0, 1.0)).all()):
        found = stats.binomtest(round(mean * tasks), tasks).proportion_ci(LEVEL, method="wilson")
        return min(mean, float(found.low)), max(mean, float(found.high))
    half = _half_width(values)
    return max(0.0, mean - half), min(1.0, mean + half)


def _half_width(values: Array) -> float:
    from scipy.special import stdtrit

    if len(values) < 2:
        return 0.0
    return float(stdtrit(len(values) - 1, (1 + LEVEL) / 2) * values.std(ddof=1) / math.sqrt(len(values)))
