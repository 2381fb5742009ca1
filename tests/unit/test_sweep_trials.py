"""The trials of a sweep: what becomes of one, and how all are drawn."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.sweep import trial as trials
from service.sweep.ranking import plot, ranked
from service.sweep.trial import Trial, run_trial
from trainer.run_dir import RunDirectory, write_json

BETTER = {"candidate": {"loss": 2.0}}


def make(root: Path, params: dict[str, Any], **facts: Any) -> Trial:
    root.mkdir()
    write_json(root / trials.NAME, {"params": params, "state": "waiting", **facts})
    return trials.read_trial(root)


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Replace the trainer by one that ends with the given codes, one for each start. Code 0 writes the report."""

    def with_codes(*codes: int, steps: int = 6) -> list[int]:
        left = list(codes)

        class Process:
            pid = 1

            def __init__(self, directory: RunDirectory, _secrets: object) -> None:
                self.directory = directory

        def watch(process: Process, *_: object) -> int:
            code = left.pop(0)
            if code == 0:
                write_json(process.directory.report, {"steps": {"total": steps}, "evaluation": BETTER})
            return code

        monkeypatch.setattr(trials, "TrainerProcess", Process)
        monkeypatch.setattr(trials, "watch_to_end", watch)
        return left

    return with_codes


@pytest.mark.parametrize("code", [-9, 75])
def test_a_trainer_that_was_killed_is_started_again(tmp_path: Path, ends: Callable[..., list[int]], code: int) -> None:
    ends(code, 0)
    assert run_trial(make(tmp_path / "a", {}), {}, threading.Event()).state == "finished"
    left = ends(code, code, 0)
    failed = run_trial(make(tmp_path / "b", {}), {}, threading.Event())
    assert failed.state == "failed" and left == [0] and str(code) in str(failed.reason)


def test_values_that_are_at_fault_are_not_tried_again(tmp_path: Path, ends: Callable[..., list[int]]) -> None:
    left = ends(4, 0)
    failed = run_trial(make(tmp_path / "a", {}), {}, threading.Event())
    assert (failed.state, left) == ("failed", [0]) and "it diverged" in str(failed.reason)


def test_a_trial_without_a_step_has_no_loss(tmp_path: Path, ends: Callable[..., list[int]]) -> None:
    ends(0, steps=0)
    failed = run_trial(make(tmp_path / "a", {}), {}, threading.Event())
    assert (failed.state, failed.loss) == ("failed", None) and "no row gives a sample" in str(failed.reason)


def test_trials_of_commands_that_varied_other_values_are_drawn(tmp_path: Path) -> None:
    found = [
        make(tmp_path / "a", {"lora.rank": 8}, state="finished", loss=2.0),
        make(tmp_path / "b", {"training.weight_decay": 0.1}, state="finished", loss=1.0),
    ]
    for one in found:
        one.directory.evaluation.write_text("", encoding="utf-8")
    plot(ranked(found), tmp_path / "sweep.svg")
    drawn = (tmp_path / "sweep.svg").read_text(encoding="utf-8")
    assert "lora.rank" in drawn and "training.weight_decay" in drawn
