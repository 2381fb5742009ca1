"""How many tasks, answers to each, and held-out files a claimed gain needs, before anybody measures it.

All tests are two-sided and paired: both models answer the same tasks, or read the same files.

    one answer to each task     McNemar's exact test; its power is summed over the number of tasks that differ
    several answers             a t test on the tasks' differences of pass rates
    held-out loss               a t test on the files' differences of loss

A task's pass rates under the two models are alike: hard tasks are hard for both. Two numbers say how much.

    icc                share of the variance of single outcomes that lies between tasks; the rest is sampling
    task_correlation   correlation of the tasks' pass rates under the two models

Not covered: a gain that is chosen as the best of several, and files of one repository, which resemble each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from service.errors import UsageError
from service.gate.interval import ratio_error, sums_by_file
from trainer.records import SampleEvaluation

MOST_UNITS = 1_000_000
MOST_SAMPLES = 10_000
TAIL = 1e-9
"""Probability that is left out on each side when power is summed."""


@dataclass(frozen=True, kw_only=True)
class PassRates:
    """A claimed gain in pass@1, and what is assumed about the tasks."""

    before: float
    after: float
    icc: float = 0.7
    task_correlation: float = 0.9

    def __post_init__(self) -> None:
        for name in ("before", "after"):
            if not 0 < getattr(self, name) < 1:
                raise UsageError(f"a pass rate must be above 0 and below 1, not {getattr(self, name):g}")
        if self.before == self.after:
            raise UsageError(f"there is no gain to find: both pass rates are {self.before:g}")
        for name in ("icc", "task_correlation"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name.replace('_', ' ')} must be from 0 to 1, not {getattr(self, name):g}")
        one, other = self.discordant()
        if min(one, other) < 0:
            raise UsageError(
                f"outcomes with these pass rates cannot be so alike (icc {self.icc:g}, task correlation "
                f"{self.task_correlation:g}). Lower one of them"
            )

    def discordant(self) -> tuple[float, float]:
        """Share of tasks that only the model before, and only the one after, passes with one answer each."""
        p, q = self.before, self.after
        alike = self.icc * self.task_correlation * math.sqrt(p * (1 - p) * q * (1 - q))
        both = p * q + alike
        return p - both, q - both

    def deviation(self, samples: int) -> float:
        """Standard deviation of a task's difference in pass rate, with `samples` answers from each model."""
        before, after = self.before * (1 - self.before), self.after * (1 - self.after)
        between = self.icc * (before + after - 2 * self.task_correlation * math.sqrt(before * after))
        return math.sqrt(between + (1 - self.icc) * (before + after) / samples)


def mcnemar_power(rates: PassRates, tasks: int, *, alpha: float) -> float:
    """Return the probability that McNemar's exact test finds the gain, in its direction."""
    from scipy import stats

    worse, better = rates.discordant() if rates.after > rates.before else rates.discordant()[::-1]
    differ = worse + better
    low, high = (int(stats.binom.ppf(edge, tasks, differ)) for edge in (TAIL, 1 - TAIL))
    numbers = np.arange(max(1, low), high + 1)
    if not len(numbers):
        return 0.0
    # The test rejects if at most `critical` of the differing tasks are worse: the largest k with 2 P(X <= k) <= alpha.
    critical = stats.binom.ppf(alpha / 2, numbers, 0.5)
    critical = np.where(2 * stats.binom.cdf(critical, numbers, 0.5) <= alpha, critical, critical - 1)
    found = stats.binom.cdf(critical, numbers, worse / differ)
    return float((stats.binom.pmf(numbers, tasks, differ) * found).sum())


def mcnemar_tasks(rates: PassRates, *, power: float, alpha: float) -> int | None:
    """Return the number of tasks for one answer each. None beyond MOST_UNITS.

    The exact power is a saw: more tasks can lower it a little. The number is found on its rising line.
    """
    return _least(lambda tasks: mcnemar_power(rates, tasks, alpha=alpha) >= power, MOST_UNITS)


def paired_tasks(rates: PassRates, samples: int, *, power: float, alpha: float) -> int | None:
    """Return the number of tasks for `samples` answers to each. None beyond MOST_UNITS."""
    return _units(abs(rates.after - rates.before), rates.deviation(samples), power=power, alpha=alpha)


def samples_per_task(rates: PassRates, tasks: int, *, power: float, alpha: float) -> int | None:
    """Return how many answers to each of `tasks` are needed. None: however many, it is too few tasks."""

    def enough(samples: int) -> bool:
        needed = paired_tasks(rates, samples, power=power, alpha=alpha)
        return needed is not None and needed <= tasks

    return _least(enough, MOST_SAMPLES)


def detectable(deviation: float, units: int, *, power: float, alpha: float) -> float | None:
    """Return the least difference that a two-sided paired t test finds. None for one unit, or without a deviation.

    Args:
        deviation: standard deviation of the units' differences
    """
    from statsmodels.stats.power import TTestPower

    if units < 2 or deviation <= 0:
        return None
    effect = TTestPower().solve_power(nobs=units, alpha=alpha, power=power)
    return float(np.asarray(effect).reshape(-1)[0]) * deviation


def files_needed(nats: float, deviation: float, *, power: float, alpha: float) -> int | None:
    """Return the number of held-out files for a gain in nats per token. None beyond MOST_UNITS.

    Args:
        deviation: standard deviation of the files' differences (see `deviation_of`)
    """
    if not (nats > 0 and deviation > 0):
        raise UsageError(f"the gain ({nats:g}) and the standard deviation ({deviation:g}) must be above 0")
    return _units(nats, deviation, power=power, alpha=alpha)


def deviation_of(samples: Sequence[SampleEvaluation]) -> tuple[float, int]:
    """Return the standard deviation between files of the difference to current, in nats per token, and the files.

    It is that of the ratio estimator: long files count for more (see interval.py).

    Raises:
        UsageError: fewer than two files, or the two models are the same.
    """
    nats, tokens = sums_by_file(samples, lambda sample: sample.loss["candidate"] - sample.loss["current"])
    files = len(tokens)
    if files < 2:
        raise UsageError("the run judged fewer than two files. Name the standard deviation with --sd")
    deviation = ratio_error(nats, tokens) * math.sqrt(files)
    if deviation == 0:
        raise UsageError("the run's candidate and current adapter give the same losses. Name a deviation with --sd")
    return deviation, files


def _units(gain: float, deviation: float, *, power: float, alpha: float) -> int | None:
    """Return the units of a two-sided paired t test. None beyond MOST_UNITS."""
    from statsmodels.stats.power import TTestPower

    test = TTestPower()
    return _least(lambda units: float(test.power(gain / deviation, units, alpha)) >= power, MOST_UNITS, start=2)


def _least(enough: Callable[[int], bool], most: int, *, start: int = 1) -> int | None:
    """Return the least number that is enough, by doubling and halving. None if `most` is not."""
    high = start
    while not enough(high):
        if high == most:
            return None
        high = min(most, high * 2)
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return max(high, start)
