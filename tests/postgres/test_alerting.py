"""What the real daemon tells through alerts, and how many refusals in a row the database counts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from test_claim_run import GOOD_REPORT, STREAM, World
from webhook import webhook

from db import runs
from db.pool import Pool
from service.alerts import alerting as alerting_module
from service.alerts.alerting import alerting
from service.alerts.targets import open_targets
from service.settings.home import Home
from service.web.exposition import json_metrics
from service.web.state import State
from trainer.records import RowOutcome, read_rows, write_outcomes
from trainer.run_dir import write_json

Query = Callable[..., list[tuple[object, ...]]]


@pytest.fixture
def world(pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(alerting_module, "LOOK_SECONDS", 0.02)
    return World(pool, tmp_path / "home")


def test_a_refused_and_a_failed_run_a_full_disk_arrive(world: World, monkeypatch: pytest.MonkeyPatch):
    world.insert(40)
    world.settings = replace(world.settings, max_dataset_size=20, min_new_files=8)
    daemon = world.daemon()
    daemon.board.note(stream=STREAM)
    with webhook() as hook, alerting(
        open_targets((hook.url,)), replace(world.settings, alert_on=("refused", "failed", "paused", "disk")),
        daemon.board, once=False,
    ):  # fmt: skip
        daemon._starting()
        assert daemon._claiming() is State.TRAINING
        run = world.home.run(daemon._run_id)
        worse = {"anchor": {"loss": 4.0}, "current": {"loss": 4.0}, "candidate": {"loss": 4.5}}
        write_json(run.report, GOOD_REPORT | {"evaluation": worse})
        outcomes = [RowOutcome(file_id=row.file_id, outcome="trained", tokens=1) for row in read_rows(run.rows)]
        outcomes += [RowOutcome(file_id=row.file_id, outcome="held_out") for row in read_rows(run.held_out)]
        write_outcomes(run.rows_outcome, outcomes)
        daemon._training()
        assert daemon._judging() is State.WAITING
        assert daemon._claiming() is State.TRAINING
        world.home.run(daemon._run_id).report.write_text('{"run_id": 2, ')
        daemon._training()
        assert daemon._judging() is State.PAUSED  # the report cannot be read
        hook.wait(2)
        monkeypatch.setattr(Home, "free_bytes", lambda self: 10)
        daemon.state = State.WAITING
        runner = threading.Thread(target=daemon.run, daemon=True)
        runner.start()
        titles = hook.wait(3)
        daemon.stop.set()
        runner.join(30)
        assert titles == [
            f"CodeLupe {STREAM}: run 1 refused", f"CodeLupe {STREAM}: run 2 failed", f"CodeLupe {STREAM}: disk (disk)"
        ]  # fmt: skip
    assert "0.5" in hook.taken[0]["message"] and "of run 2 cannot be read" in hook.taken[1]["message"]
    assert "Free some space" in hook.taken[2]["message"]


def test_refusals_in_a_row_are_those_since_the_last_other_verdict(world: World, query: Query):
    def counted(*states: str) -> int:
        columns = "stream, state, seed, epoch, ended_at"
        query("delete from codelupe.runs")
        for state in states:
            query(f"insert into codelupe.runs ({columns}) values (%s, %s, 1, 1, now())", STREAM, state)
        daemon = world.daemon()
        daemon.upkeep.refresh()
        found = json_metrics(daemon.board.read())["metrics"]["gate_refusals_in_a_row"]
        assert found == runs.totals(world.pool, STREAM).refusals_in_a_row
        return int(found)

    assert counted() == 0
    assert counted("refused", "refused") == 2
    assert counted("refused", "published", "refused", "failed", "returned", "refused") == 2
    assert counted("refused", "refused", "inconclusive") == 0


def test_the_board_counts_what_is_not_finite_and_when_the_trainer_last_spoke(world: World):
    from service.cycle.watch import Watcher

    run = world.home.run(1)
    run.root.mkdir(parents=True)
    board = world.daemon().board
    run.events.write_text('{"event": "non_finite", "step": 1, "what": "loss"}\n')
    watcher = Watcher(run, 1, board)
    watcher.skip_history()
    assert board.read().non_finite == 0, "an earlier start's event is counted once"
    spoke = board.read().last_event
    time.sleep(0.01)
    watcher.read()
    assert board.read().last_event == spoke
    with run.events.open("a") as events:
        events.write('{"event": "non_finite", "step": 2, "what": "loss"}\n')
    watcher.read()
    assert board.read().non_finite == 1 and (board.read().last_event or 0) > (spoke or 0)
    board.update(state="training")
    assert (board.read().event_age_seconds() or 99) < 5
    board.update(state="judging")
    assert board.read().event_age_seconds() is None
