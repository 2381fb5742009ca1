"""The gate: the loss is finite, measured in the same run, and at most the tolerance worse than the current loss."""

import math

import pytest

from service.gate.judge import judge
from trainer.recipe import Gate


def report(candidate=1.0, current=1.0, anchor=1.2, trained=10, samples=8, run_id=7):
    losses = {"anchor": anchor, "current": current, "candidate": candidate}
    return {
        "run_id": run_id,
        "rows": {"trained": trained},
        "held_out": {"samples": samples},
        "evaluation": {name: {"loss": loss} for name, loss in losses.items()},
    }


def test_a_better_candidate_is_promoted():
    verdict = judge(report(candidate=0.9), Gate(), run_id=7)
    assert verdict.promote
    assert "better by 0.1000" in verdict.text()
    assert verdict.measured == {"anchor": 1.2, "current": 1.0, "candidate": 0.9}


@pytest.mark.parametrize(("candidate", "promoted"), [(1.05, True), (1.0501, False)])
def test_the_tolerance_is_the_limit(candidate: float, promoted: bool):
    assert judge(report(candidate=candidate), Gate(tolerance=0.05), run_id=7).promote is promoted


@pytest.mark.parametrize("loss", [math.nan, math.inf, None, "nan"])
def test_a_loss_that_is_not_a_number_is_refused(loss):
    verdict = judge(report(candidate=loss), Gate(tolerance=1e9), run_id=7)
    assert not verdict.promote
    assert "candidate" in verdict.text()


def test_every_reason_to_refuse_is_listed():
    verdict = judge(report(candidate=2.0, trained=0, samples=0, run_id=6), Gate(), run_id=7)
    assert len(verdict.reasons) == 4


def test_an_empty_report_is_refused():
    assert not judge({}, Gate(), run_id=7).promote
