"""The learning rate of each step."""

from __future__ import annotations

import itertools

import pytest

from trainer.fit.schedule import learning_rate, warmup_steps
from trainer.recipe import Training


def rates_of(steps: int, **training) -> list[float]:
    return [learning_rate(step, steps, Training(**training)) for step in range(1, steps + 1)]


def test_the_rate_rises_and_falls_and_is_never_zero():
    training = Training(learning_rate=1.0, warmup_fraction=0.1)
    rates = [learning_rate(step, 100, training) for step in range(1, 101)]
    assert rates[:10] == [pytest.approx(step / 11) for step in range(1, 11)]
    assert rates[10] == 1.0
    assert all(earlier > later for earlier, later in itertools.pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(1 / 90)


def test_the_decay_schedules():
    halfway = {
        shape: learning_rate(51, 100, Training(learning_rate=2.0, warmup_fraction=0.0, schedule=shape))
        for shape in ("linear", "cosine", "constant")
    }
    assert halfway == {"linear": pytest.approx(1.0), "cosine": pytest.approx(1.0), "constant": 2.0}
    start = learning_rate(1, 100, Training(learning_rate=2.0, warmup_fraction=0.0, schedule="cosine"))
    assert start == pytest.approx(2.0)


@pytest.mark.parametrize(("steps", "fraction", "warmup"), [(1000, 0.03, 30), (10, 0.03, 1), (10, 0, 0), (1, 0.5, 0)])
def test_warm_up_takes_at_least_one_step(steps, fraction, warmup):
    assert warmup_steps(steps, fraction) == warmup
    assert learning_rate(steps, steps, Training(warmup_fraction=fraction)) > 0


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_decay_ends_at_the_lowest_rate(schedule):
    rates = rates_of(1000, learning_rate=1.0, min_learning_rate=0.25, warmup_fraction=0.0, schedule=schedule)
    assert rates[0] == 1.0 and rates[500] == pytest.approx(0.625)
    assert rates[-1] == pytest.approx(0.25, abs=1e-3) and min(rates) >= 0.25


def test_restarts_are_equal_cosine_periods_that_each_start_from_the_peak():
    several = {"learning_rate": 1.0, "min_learning_rate": 0.1, "warmup_fraction": 0.1}
    rates = rates_of(100, schedule="cosine_with_restarts", restarts=3, **several)
    assert [step for step, rate in enumerate(rates, 1) if rate == 1.0] == [11, 41, 71]
    one = rates_of(30, schedule="cosine", learning_rate=1.0, min_learning_rate=0.1, warmup_fraction=0.0)
    for start in (10, 40, 70):
        assert rates[start : start + 30] == pytest.approx(one)
    assert rates_of(100, schedule="cosine_with_restarts", **several) == rates_of(100, schedule="cosine", **several)


def test_a_range_test_raises_the_rate_by_the_same_factor_at_each_step():
    rates = rates_of(5, schedule="range_test", min_learning_rate=1e-6, learning_rate=1e-2, warmup_fraction=0.5)
    assert rates == pytest.approx([1e-6, 1e-5, 1e-4, 1e-3, 1e-2])
    assert rates_of(1, schedule="range_test", min_learning_rate=1e-6, learning_rate=1e-2) == [1e-6]
