"""The gate at its limits: exactly enough is promoted, and a little less is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

from service.gate.judge import judge
from trainer.errors import RecipeError
from trainer.recipe import Gate
from trainer.recipe_file import parse_recipe

FINITE = 1.7976931348623157e308
"""The largest finite number."""
NAMES = ("anchor", "current", "candidate")


def report(*, trained: int = 1, samples: int = 1, run_id: int = 7, **losses: float) -> dict[str, Any]:
    """Return a trainer's report. Every loss is 1 by default."""
    return {
        "run_id": run_id,
        "rows": {"trained": trained},
        "held_out": {"samples": samples},
        "evaluation": {name: {"loss": losses.get(name, 1.0)} for name in NAMES},
    }


@pytest.mark.parametrize("tolerance", [0.0, 0.25])
def test_a_loss_worse_by_exactly_the_tolerance_is_promoted(tolerance: float):
    verdict = judge(report(candidate=1.0 + tolerance), Gate(tolerance=tolerance), run_id=7)
    assert verdict.promote, verdict.text()


@pytest.mark.parametrize("tolerance", [0.0, 0.25])
def test_a_loss_worse_by_the_least_bit_more_than_the_tolerance_is_refused(tolerance: float):
    worse = math.nextafter(1.0 + tolerance, math.inf)
    verdict = judge(report(candidate=worse), Gate(tolerance=tolerance), run_id=7)
    assert not verdict.promote and "worse than current's" in verdict.text()


def test_without_a_tolerance_in_the_recipe_an_equal_loss_is_promoted_and_a_worse_one_is_not():
    assert judge(report(candidate=1.0), Gate(), run_id=7).promote
    assert not judge(report(candidate=math.nextafter(1.0, 2.0)), Gate(), run_id=7).promote


def test_an_equal_loss_counts_as_better_by_nothing_and_a_worse_one_as_within_tolerance():
    assert "better by 0.0000" in judge(report(), Gate(), run_id=7).text()
    worse = judge(report(candidate=math.nextafter(1.0, 2.0)), Gate(tolerance=0.25), run_id=7)
    assert "within tolerance, worse by 0.0000" in worse.text()


@pytest.mark.parametrize(("trained", "promoted"), [(1, True), (0, False)])
def test_one_trained_row_is_enough_and_none_is_not(trained: int, promoted: bool):
    verdict = judge(report(trained=trained), Gate(), run_id=7)
    assert verdict.promote is promoted
    assert ("no row was trained" in verdict.text()) is not promoted


@pytest.mark.parametrize(("samples", "promoted"), [(1, True), (0, False)])
def test_one_held_out_sample_is_enough_and_none_is_not(samples: int, promoted: bool):
    verdict = judge(report(samples=samples), Gate(), run_id=7)
    assert verdict.promote is promoted
    assert ("no held-out sample" in verdict.text()) is not promoted


@pytest.mark.parametrize("section", ["rows", "held_out"])
def test_a_count_that_is_missing_is_none(section: str):
    without = report()
    del without[section]
    assert not judge(without, Gate(), run_id=7).promote


@pytest.mark.parametrize("name", NAMES)
def test_the_greatest_finite_loss_is_a_number(name: str):
    verdict = judge(report(**{name: FINITE}), Gate(), run_id=7)
    assert "not a finite number" not in verdict.text()
    assert verdict.promote is (name != "candidate")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("loss", [math.inf, -math.inf, math.nan])
def test_a_loss_that_is_not_finite_is_refused_whatever_the_tolerance(name: str, loss: float):
    verdict = judge(report(**{name: loss}), Gate(tolerance=FINITE), run_id=7)
    assert not verdict.promote
    assert f"held-out loss of {name} is not a finite number" in verdict.text()


@pytest.mark.parametrize(("run_id", "promoted"), [(6, False), (7, True), (8, False)])
def test_only_the_report_of_the_run_itself_counts(run_id: int, promoted: bool):
    assert judge(report(run_id=run_id), Gate(), run_id=7).promote is promoted


@pytest.mark.parametrize(("tolerance", "allowed"), [(0.0, True), (-5e-324, False)])
def test_a_tolerance_may_be_zero_and_not_less(tolerance: float, allowed: bool):
    data = {"name": "a", "stream": "b", "gate": {"tolerance": tolerance}}
    if allowed:
        assert parse_recipe(data, where="r").gate.tolerance == tolerance
    else:
        with pytest.raises(RecipeError, match=r"gate\.tolerance: .* is below the minimum"):
            parse_recipe(data, where="r")
