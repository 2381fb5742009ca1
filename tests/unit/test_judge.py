"""The gate: for each rule a candidate that only this rule catches, and the decision that follows from the rules."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
from gate_evidence import GOOD_EXAMINATION, evidence, files, report

from service.gate.evidence import Evidence
from service.gate.judge import judge
from service.gate.rules import RULES
from trainer.errors import RecipeError
from trainer.recipe import Gate
from trainer.recipe_file import parse_recipe

POINT = Gate(evidence="point", tolerance=0.0)


def outcomes(found: Evidence) -> dict[str, str]:
    """Return what each rule found, without those that passed."""
    return {finding.rule: finding.outcome for finding in judge(found).findings if finding.outcome != "pass"}


def examined(**changes: Any) -> dict[str, Any]:
    """Return a good examination with changed sections."""
    found = copy.deepcopy(GOOD_EXAMINATION)
    for section, values in changes.items():
        found[section] |= values
    return found


def answering(**counts: int) -> dict[str, Any]:
    found = copy.deepcopy(GOOD_EXAMINATION)
    found["generation"]["candidate"] |= counts
    return found


EARLIER = files(20, 0.0, run_id=3, start=100)
NEW = files(8, -0.1)


def test_a_good_candidate_passes_every_rule():
    verdict = judge(evidence())
    assert verdict.promote and verdict.decision == "promote"
    assert [found.rule for found in verdict.findings] == list(RULES["interval"])
    assert "better by 0.1000" in verdict.text() and "8 files" in verdict.text()


@pytest.mark.parametrize(
    ("rule", "found"),
    [
        ("complete", evidence(report=report(run_id=6))),
        ("complete", evidence(report=report(trained=0))),
        ("separate", evidence(leaks=["file 5 was trained on, and it judges"])),
        ("whole", evidence(examination=examined(weights={"not_finite": ["layers.0.lora_B"]}))),
        ("whole", evidence(report=report() | {"adapter": {"manifest_sha256": "a"}},
                           examination=GOOD_EXAMINATION | {"manifest_sha256": "b"})),
        ("whole", evidence(examination=examined(measured_again={"largest_difference": 0.021}))),
        ("whole", evidence(examination=examined(measured_again={"largest_difference": math.nan}))),
        ("changed", evidence(examination=examined(weights={"changed": 0}))),
        ("changed", evidence(examination=examined(norm={"largest": 0.51}))),
        ("changed", evidence(examination=examined(norm={"largest": math.nan}))),
        ("answers", evidence(examination=answering(leaking=1))),
        ("answers", evidence(examination=answering(looping=7))),
        ("suites", evidence(examination=GOOD_EXAMINATION | {"suites": {"HumanEval.jsonl": {
            "tasks": 164, "difference": -0.06, "first_only": 2, "second_only": 12, "p_value": 0.013}}})),
        ("gain", evidence([*files(8, 0.1), *EARLIER])),
        ("earlier_current", evidence([*NEW, *files(20, 0.05, run_id=3, start=100)])),
        ("earlier_anchor", evidence([*NEW, *files(20, 0.0, run_id=3, start=100, anchor=-0.05)])),
        ("languages", evidence([*NEW, *files(60, -0.05, run_id=3, start=100),
                                *files(6, 0.2, run_id=3, start=200, language="rust")])),
    ],
)  # fmt: skip
def test_each_rule_catches_a_candidate_that_no_other_rule_catches(rule: str, found: Evidence):
    assert outcomes(found) == {rule: "fail"}
    verdict = judge(found)
    assert verdict.decision == "refuse" and verdict.reasons[0].startswith(f"{rule}: ")


def test_an_adapter_that_cannot_be_loaded_fails_the_rules_that_need_it():
    found = evidence(examination={"failure": "adapter_config.json is missing"})
    assert outcomes(found) == {"whole": "fail", "changed": "fail", "answers": "fail"}
    assert "adapter_config.json is missing" in judge(found).text()


def test_without_an_examination_the_candidate_is_refused_unless_the_recipe_says_so():
    assert outcomes(evidence(examination=None)) == {"whole": "fail", "changed": "fail", "answers": "fail"}
    assert judge(evidence(examination=None, gate=Gate(examination=False))).promote


@pytest.mark.parametrize(
    ("rule", "found"),
    [
        ("gain", evidence([*files(8, -0.005), *EARLIER])),
        ("gain", evidence([*files(8, -0.02, spread=0.01), *EARLIER])),
        ("gain", evidence([*files(3, -0.1), *EARLIER])),
        ("gain", evidence(EARLIER)),
        ("gain", evidence(report=report(disjoint=False))),
        ("earlier_current", evidence([*NEW, *files(20, 0.0, spread=0.1, run_id=3, start=100)])),
        ("earlier_current", evidence([*NEW, *files(1, 0.0, run_id=3, start=100, anchor=0.2)])),
    ],
)
def test_too_little_evidence_leaves_the_candidate_open(rule: str, found: Evidence):
    said = outcomes(found)
    assert said.pop(rule) == "inconclusive" and set(said.values()) <= {"inconclusive"}
    assert judge(found).decision == "inconclusive"


def test_the_least_gain_is_the_limit():
    samples = [*files(8, -0.02, spread=0.01), *EARLIER]
    assert judge(evidence(samples, gate=Gate(least_gain=0.0))).promote
    assert judge(evidence(samples, gate=Gate(least_gain=0.01))).decision == "inconclusive"


def test_one_failure_outweighs_an_open_question():
    found = evidence([*files(3, -0.1), *EARLIER], leaks=["file 5 was trained on, and it judges"])
    assert judge(found).decision == "refuse"


def test_files_of_the_trunk_are_new_and_those_of_other_runs_are_earlier():
    samples = [*files(3, -0.1), *files(4, -0.1, run_id=6, start=50), *EARLIER]
    assert judge(evidence(samples)).decision == "inconclusive"
    with_trunk = evidence(samples, trunk=frozenset({6}))
    assert (len(with_trunk.new), len(with_trunk.earlier)) == (7, 20)
    assert judge(with_trunk).promote


@pytest.mark.parametrize(("inconclusive", "level"), [(0, 0.975), (1, 1 - 0.05 / 6), (2, 1 - 0.05 / 12)])
def test_each_further_look_at_the_same_files_needs_more_certainty(inconclusive: int, level: float):
    found = evidence(trunk=frozenset(range(100, 100 + inconclusive)))
    gain = next(one for one in judge(found).findings if one.rule == "gain")
    assert gain.numbers["level"] == pytest.approx(level)
    assert gain.numbers["look"] == inconclusive + 1


def test_the_allowed_error_of_all_looks_adds_up_to_that_of_the_recipe():
    spent = sum(1 - evidence(trunk=frozenset(range(look))).new_level for look in range(2000))
    assert spent == pytest.approx(0.05, abs=1e-4) and spent < 0.05


def test_after_too_many_open_runs_the_candidate_is_refused():
    samples = [*files(8, 0.0), *EARLIER]
    assert judge(evidence(samples, trunk=frozenset(range(10, 16)))).decision == "inconclusive"
    last = judge(evidence(samples, trunk=frozenset(range(10, 17))))
    assert last.decision == "refuse" and "No evidence after 8 runs in a row" in last.text()


@pytest.mark.parametrize(("difference", "outcome"), [(0.0, "pass"), (0.019, "inconclusive"), (0.035, "fail")])
def test_on_earlier_files_the_tolerance_is_the_limit(difference: float, outcome: str):
    found = judge(evidence([*NEW, *files(20, difference, run_id=3, start=100)]))
    assert next(one for one in found.findings if one.rule == "earlier_current").outcome == outcome


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf, None, "nan"])
@pytest.mark.parametrize("name", ["anchor", "current", "candidate"])
def test_a_loss_that_is_not_a_number_is_refused(name: str, loss: Any):
    for gate in (Gate(), POINT):
        verdict = judge(evidence(report=report(**{name: loss}), gate=gate))
        assert verdict.decision == "refuse" and f"held-out loss of {name} is not a finite number" in verdict.text()
        assert verdict.intervals == {}


def test_every_reason_to_refuse_is_listed():
    verdict = judge(evidence(report=report(trained=0, samples=0, run_id=6), gate=POINT))
    assert len(verdict.reasons) == 1 and verdict.text().count(";") == 2


def test_an_empty_report_is_refused():
    assert judge(evidence(report={}, examination=None)).decision == "refuse"


@pytest.mark.parametrize("section", ["rows", "held_out"])
def test_a_count_that_is_missing_is_none(section: str):
    without = report()
    del without[section]
    assert outcomes(evidence(report=without))["complete"] == "fail"


# --- evidence: point ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("tolerance", [0.0, 0.25])
def test_with_points_a_loss_worse_by_exactly_the_tolerance_is_promoted(tolerance: float):
    gate = Gate(evidence="point", tolerance=tolerance)
    assert judge(evidence([], report=report(candidate=1.0 + tolerance), gate=gate)).promote
    worse = judge(evidence([], report=report(candidate=math.nextafter(1.0 + tolerance, 2.0)), gate=gate))
    assert worse.decision == "refuse" and "worse by" in worse.text()


def test_with_points_nothing_stays_open():
    assert judge(evidence(files(1, 0.0), report=report(disjoint=False), gate=POINT)).promote


# --- the recipe --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"tolerance": -5e-324}, r"gate\.tolerance: .* is below the minimum"),
        ({"evidence": "both"}, r"gate\.evidence: 'both' is not one of interval, point"),
        ({"confidence": 1.0}, r"gate\.confidence: 1\.0 is above the maximum"),
        ({"least_files": 1}, r"gate\.least_files: 1 is below the minimum"),
    ],
)
def test_the_limits_of_the_recipe(values: dict[str, Any], problem: str):
    with pytest.raises(RecipeError, match=problem):
        parse_recipe({"name": "a", "stream": "b", "gate": values}, where="r")


def test_a_recipe_of_an_earlier_version_is_read():
    assert parse_recipe({"name": "a", "stream": "b", "gate": {"tolerance": 0.0}}, where="r").gate.tolerance == 0.0
