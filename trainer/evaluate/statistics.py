"""How certain a share of passed tasks is, and a difference of two. The unit is the task. (no torch)

Samples of one task resemble each other, so the task is a cluster: its estimates are averaged first. Files of held-out
code are treated in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
RESAMPLES = 10_000


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over tasks with its 95 % confidence interval."""

    value: float
    low: float
    high: float
    tasks: int
    method: str
    """`wilson` for a share of tasks, `clustered` (Student's t over tasks) for a mean of tasks' estimates."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The difference of two evaluations of the same tasks: the first minus the second."""

    tasks: int
    """Number of tasks that both have."""
    difference: float
    low: float
    high: float
    """95 % interval of a paired bootstrap over tasks."""
    first_only: int
    """Tasks whose sample 0 passed in the first evaluation only."""
    second_only: int
    p_value: float
    """McNemar's exact test on sample 0 of each task: two-sided."""


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of one value for each task, from 0 to 1, with its interval.

    Shares (values of 0 and 1) and constant values get Wilson's interval, which does not collapse at 0 and 1. Others get
    the clustered standard error: with the task as the cluster, that is the standard error of the tasks' mean.
    """
    from scipy import stats

    data = np.asarray(values, dtype=np.float64)
    mean, tasks = float(data.mean()), len(data)
    spread = float(data.std(ddof=1)) if tasks > 1 else 0.0
    if spread == 0.0 or bool(np.isin(data, (0.0, 1.0)).all()):
        interval = stats.binomtest(round(mean * tasks), tasks).proportion_ci(LEVEL, method="wilson")
        return Estimate(
            value=mean, low=min(mean, float(interval.low)), high=max(mean, float(interval.high)), tasks=tasks,
            method="wilson",
        )  # fmt: skip
    half = float(stats.t.ppf((1 + LEVEL) / 2, tasks - 1)) * spread / tasks**0.5
    return Estimate(
        value=mean, low=max(0.0, mean - half), high=min(1.0, mean + half), tasks=tasks, method="clustered"
    )  # fmt: skip


def mcnemar(first_only: int, second_only: int) -> float:
    """Return the two-sided p-value of McNemar's exact test. Only tasks on which both differ count."""
    from statsmodels.stats.contingency_tables import mcnemar as test

    return float(test([[0, first_only], [second_only, 0]], exact=True).pvalue) if first_only + second_only else 1.0


def bootstrap(differences: Sequence[float], *, seed: int = 0) -> tuple[float, float]:
    """Return the percentile interval of the mean difference. Tasks are drawn with replacement."""
    from scipy import stats

    data = np.asarray(differences, dtype=np.float64)
    if len(data) < 2 or bool((data == data[0]).all()):
        return float(data.mean()), float(data.mean())
    found = stats.bootstrap(
        (data,), np.mean, n_resamples=RESAMPLES, confidence_level=LEVEL, method="percentile", batch=1000,
        rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return float(found.low), float(found.high)


def compare(first: dict[str, list[float]], second: dict[str, list[float]], *, seed: int = 0) -> Comparison | None:
    """Compare the scores of two evaluations by task, in order of samples. None if they share no task."""
    shared = [task for task in first if task in second and first[task] and second[task]]
    if not shared:
        return None
    differences = [float(np.mean(first[task]) - np.mean(second[task])) for task in shared]
    pairs = [(first[task][0] >= 1.0, second[task][0] >= 1.0) for task in shared]
    first_only, second_only = pairs.count((True, False)), pairs.count((False, True))
    low, high = bootstrap(differences, seed=seed)
    return Comparison(
        tasks=len(shared),
        difference=float(np.mean(differences)),
        low=low,
        high=high,
        first_only=first_only,
        second_only=second_only,
        p_value=mcnemar(first_only, second_only),
    )
