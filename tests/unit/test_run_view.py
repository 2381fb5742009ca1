"""`codelupe runs RUN` says what a run measured and why its candidate was promoted or not."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from db.runs import Run
from service.cli.run_view import print_run

SCORE = {"loss": 3.5, "perplexity": 33.1, "token_accuracy": 0.4}
RUN = Run(
    run_id=4, stream="s", state="refused", parent_version=3, seed=1, launches=1, reason="worse", report=None,
    created_at=datetime(2026, 11, 27, tzinfo=UTC), started_at=None, ended_at=None,
)  # fmt: skip


def test_a_verdict_is_shown_with_its_losses_and_intervals(capsys):
    verdict = {
        "promote": False,
        "reasons": ["held-out loss 3.6 is worse than current's 3.5"],
        "intervals": {"earlier": {"difference": 0.07, "low": 0.03, "high": 0.11, "files": 9}},
    }
    report = {
        "steps": {"total": 10, "done": 8, "best": 5}, "early_stopped": True, "rows": {"trained": 20, "rejected": 0},
        "evaluation": {"anchor": SCORE, "current": SCORE, "candidate": {**SCORE, "loss": 3.6}}, "verdict": verdict,
    }  # fmt: skip
    print_run(replace(RUN, report=report))
    shown = capsys.readouterr().out
    assert "8 of 10, stopped early; the best is 5" in shown and "20 trained" in shown and "rejected" not in shown
    assert "candidate" in shown and "3.6000" in shown
    assert (
        "verdict: refused: the current adapter stays, and the rows come back later\n  held-out loss 3.6 is worse"
        in shown
    )
    assert "earlier files: worse by 0.0700, 95 % interval 0.0300 to 0.1100, 9 files" in shown


def test_a_run_of_an_earlier_version_and_a_live_run_are_shown(capsys):
    print_run(replace(RUN, report={"evaluation": {"anchor": SCORE, "current": {}, "candidate": SCORE}}))
    print_run(replace(RUN, report={"evaluation": None}))
    print_run(replace(RUN, state="training", reason=None))
    shown = capsys.readouterr().out
    assert "verdict" not in shown and "training" in shown and shown.count("base alone") == 1


def test_the_energy_of_a_run_and_its_cost(capsys):
    cost = {"amount": 0.126, "per_kwh": 0.3, "currency": "EUR"}
    print_run(replace(RUN, report={"energy_joules": 1512000.0, "energy_source": "counter", "energy_cost": cost}))
    assert "0.420 kWh (0.13 EUR) " in capsys.readouterr().out
    print_run(replace(RUN, report={"energy_joules": 1512000.0, "energy_source": "power", "energy_cost": None}))
    assert "0.420 kWh, from power readings" in capsys.readouterr().out
    print_run(replace(RUN, report={"energy_joules": None}))
    assert "energy" not in capsys.readouterr().out
