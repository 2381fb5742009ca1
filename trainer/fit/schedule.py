"""The learning rate as a pure function of the step. (no torch)"""

from __future__ import annotations

import math
from collections.abc import Callable

from trainer.recipe import Training

SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda left: left,
    "cosine": lambda left: 0.5 * (1 - math.cos(math.pi * left)),
    "constant": lambda left: 1.0,
}
"""Maps the remaining share of the steps after warm-up (1 to above 0) to a share of the peak rate."""


def learning_rate(step: int, steps_total: int, training: Training) -> float:
    """Return the rate of a step, counted from 1: linear warm-up, then the schedule. No step has rate 0."""
    assert 1 <= step <= steps_total, f"step {step} of {steps_total}"
    warmup = warmup_steps(steps_total, training.warmup_fraction)
    if step <= warmup:
        return training.learning_rate * step / (warmup + 1)
    left = (steps_total - step + 1) / (steps_total - warmup)
    return training.learning_rate * SHAPES[training.schedule](left)


def warmup_steps(steps_total: int, fraction: float) -> int:
    """Number of warm-up steps: at least one if there is a warm-up, and never all steps."""
    if fraction == 0:
        return 0
    return min(max(1, round(steps_total * fraction)), steps_total - 1)
