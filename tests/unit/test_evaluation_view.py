"""What `codelupe evaluate` prints for people."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from test_slices import SAMPLES

from service.cli.evaluation_view import print_evaluation
from service.gate.slices import as_record, bootstrap_interval, slices

ESTIMATE = {"value": 0.5, "low": 0.3, "high": 0.7, "tasks": 20, "method": "wilson"}
MEASURES = {"tasks": 20, "samples": 200, "pass@1": ESTIMATE, "pass@10": {**ESTIMATE, "value": 0.75}}
FOUND: dict[str, Any] = {
    "folder": "/home/x/[evaluations]", "adapter": "v000003", "suite": "mbpp", "tasks": 20, "samples": 200,
    "cut_at_max_tokens": 3, "executed": True,
}  # fmt: skip


def test_measures_by_split_and_a_comparison(capsys):
    passed = {
        "tasks": 20, "difference": 0.1, "low": -0.05, "high": 0.25, "first_only": 3, "second_only": 1, "p_value": 0.625,
    }  # fmt: skip
    against = {"folder": "/home/x/base", "passed": passed, "edit_similarity": passed}
    reasons = {"passed": 100, "AssertionError": 100}
    print_evaluation({**FOUND, "split": {"test": MEASURES, "train": MEASURES}, "reasons": reasons, "against": against})
    shown = capsys.readouterr().out
    assert "test" in shown and "train" in shown and "pass@10" in shown and "0.7500" in shown
    assert "verdicts: 100 passed, 100 AssertionError" in shown and "3 answers reached --max-tokens" in shown
    assert "passed here only 3, there only 1: exact McNemar p = 0.6250" in shown
    assert "difference +0.1000, 95 % interval -0.0500 to +0.2500" in shown and "edit similarity +0.1000" in shown
    assert "results: /home/x/[evaluations]" in shown


def test_slices_that_repeat_the_whole_are_left_out(capsys):
    found = {
        **FOUND,
        "all": {"all": MEASURES},
        "language": {"python": MEASURES},
        "kind": {"a": MEASURES, "b": MEASURES},
    }
    print_evaluation({**found, "reasons": {"passed": 1}})
    shown = capsys.readouterr().out
    assert "kind a" in shown and "kind b" in shown and "language" not in shown


def test_nothing_executed_is_said(capsys):
    print_evaluation({**FOUND, "executed": False, "cut_at_max_tokens": 0})
    shown = capsys.readouterr().out
    assert "200 answers to 20 tasks generated. Nothing was executed: add --execute" in shown
    assert "--max-tokens" not in shown


def test_losses_with_their_intervals(capsys):
    interval = bootstrap_interval(SAMPLES, against="anchor")
    assert interval is not None
    found = {**FOUND, "models": {}, "slices": as_record(slices(SAMPLES)), "bootstrap": {"anchor": asdict(interval)}}
    print_evaluation(found)
    shown = capsys.readouterr().out
    assert "rust" in shown and "this adapter" in shown and "held-out files by kind" not in shown
    assert "this adapter against the base alone: better by" in shown and "(paired bootstrap over files)" in shown
