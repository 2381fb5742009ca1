"""The learning rate as a pure function of the step. (no torch)"""

from __future__ import annotations

import math
from collections.abc import Callable

from trainer.recipe import Training


def _cosine(left: float) -> float:
    return 0.5 * (1 - math.cos(math.pi * left))


SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda left: left,
    "cosine": _cosine,
    "cosine_with_restarts": _cosine,
    "constant": lambda left: 1.0,
}
"""Maps the remaining share of a period (1 to above 0) to a share of the way from the lowest rate to the peak."""


def learning_rate(step: int, steps_total: int, training: Training) -> float:
    """Return the rate of a step, counted from 1: linear warm-up, then the schedule. No step has rate 0.

    cosine_with_restarts divides the steps after the warm-up into `restarts` periods of equal length; each starts from
    the peak (Loshchilov & Hutter 2017, section 3, with T_mult = 1). The others have one period.
    """
    assert 1 <= step <= steps_total, f"step {step} of {steps_total}"
    low, peak = training.min_learning_rate, training.learning_rate
    if training.schedule == "range_test":
        return _range_test(step, steps_total, low, peak)
    warmup = warmup_steps(steps_total, training.warmup_fraction)
    if step <= warmup:
        return peak * step / (warmup + 1)
    length = steps_total - warmup
    periods = training.restarts if training.schedule == "cosine_with_restarts" else 1
    left = (length - (step - warmup - 1) * periods % length) / length
    return low + (peak - low) * SHAPES[training.schedule](left)


def warmup_steps(steps_total: int, fraction: float) -> int:
    """Number of warm-up steps: at least one if there is a warm-up, and never all steps."""
    if fraction == 0:
        return 0
    return min(max(1, round(steps_total * fraction)), steps_total - 1)


def _range_test(step: int, steps_total: int, low: float, high: float) -> float:
    """From `low` to `high` by the same factor at each step (Smith 2017, section 3.3, on a logarithmic scale)."""
    return low * (high / low) ** ((step - 1) / max(1, steps_total - 1))
