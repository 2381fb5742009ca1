"""A pause ends when what was missing is there. A verdict is told when it is settled, and not before."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_claim_run import GOOD_REPORT, STREAM, World

from db import streams
from db.errors import DatabaseError, Unavailable
from db.pool import Pool
from service.cli.data import _next, _Waiting
from service.cycle import pausing
from service.cycle.daemon import Daemon
from service.settings.home import Home
from service.web.state import State
from trainer.records import RowOutcome, read_rows, write_outcomes
from trainer.run_dir import write_json


@pytest.fixture
def world(pool: Pool, tmp_path: Path) -> World:
    made = World(pool, tmp_path / "home")
    made.settings = replace(made.settings, check_interval_seconds=600.0)
    return made


def pause(world: World, cause: str, *, rows: int | None = None) -> Daemon:
    """Return a daemon that has begun a pause. `rows` were pending before its last claim."""
    daemon = world.daemon()
    assert daemon._starting() is State.WAITING
    daemon._pausing.rows = rows
    assert daemon._pause(cause, "something is missing") is State.PAUSED
    return daemon


def seconds_of(daemon: Daemon, meanwhile: Callable[[], object], after: float = 0.5) -> float:
    """Let a pause last, and do something in the meantime. Return how long it lasted."""
    began, other = time.monotonic(), threading.Timer(after, meanwhile)
    other.start()
    assert daemon._paused() is State.STARTING
    other.join()
    return time.monotonic() - began


def test_announced_files_end_a_pause_that_asks_for_files(world: World) -> None:
    world.insert(1)
    daemon = pause(world, "held_out", rows=1)
    assert seconds_of(daemon, lambda: world.insert(5, prefix="more")) < 10
    assert "held_out" not in daemon.board.read().troubles


def test_files_that_nobody_announces_end_it_at_the_next_poll(world: World, query: Any) -> None:
    world.settings = replace(world.settings, check_interval_seconds=0.2)
    world.insert(1)
    daemon = pause(world, "held_out", rows=1)
    insert = "insert into code_files (content, quality_score) values (repeat('x', 60), 90)"
    assert seconds_of(daemon, lambda: query(insert)) < 10


def test_files_between_the_claim_and_the_pause_end_it_at_once(world: World) -> None:
    world.insert(3)
    assert seconds_of(pause(world, "held_out", rows=1), lambda: None, 0.0) < 5


@pytest.mark.parametrize("cause", ["held_out", "trainer", "disk"])
def test_a_pause_lasts_while_nothing_changes(world: World, monkeypatch: pytest.MonkeyPatch, cause: str) -> None:
    monkeypatch.setattr(pausing, "FIRST_PAUSE_SECONDS", 1.0)
    monkeypatch.setattr(Home, "free_bytes", lambda self: 0)
    world.insert(1)
    meanwhile = (lambda: None) if cause == "held_out" else (lambda: world.insert(5, prefix="more"))
    assert seconds_of(pause(world, cause, rows=1), meanwhile, 0.1) >= 0.9


def test_space_ends_a_pause_for_space(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    free, slept = [0], []
    monkeypatch.setattr(Home, "free_bytes", lambda self: free[0])
    daemon = pause(world, "disk")

    def sleep(seconds: float, **options: object) -> None:
        slept.append(seconds)
        free[0] = 10**15 if len(slept) == 2 else 0

    monkeypatch.setattr(daemon._wait, "sleep", sleep)
    assert daemon._paused() is State.STARTING
    assert len(slept) == 2 and "disk" not in daemon.board.read().troubles


def test_a_request_wakes_a_service_that_waits(world: World) -> None:
    world.settings = replace(world.settings, min_new_files=100, check_interval_seconds=20.0)
    world.insert(5)
    daemon = world.daemon()
    daemon._starting()
    began, other = time.monotonic(), threading.Timer(0.5, lambda: streams.request_training(world.pool, STREAM))
    other.start()
    assert daemon._waiting() is State.WAITING
    assert time.monotonic() - began < 10
    assert daemon._waiting() is State.CLAIMING
    other.join()


# --- verdicts ---------------------------------------------------------------------------------------------------


@pytest.fixture
def judging(world: World) -> Daemon:
    """A daemon whose run is to be judged. The candidate has no adapter, so it is refused."""
    world.insert(20)
    daemon = world.daemon()
    daemon._starting()
    assert daemon._claiming() is State.TRAINING
    run = world.home.run(daemon._run_id)
    write_json(run.report, GOOD_REPORT)
    outcomes = [RowOutcome(file_id=row.file_id, outcome="trained", samples=1, tokens=1) for row in read_rows(run.rows)]
    outcomes += [RowOutcome(file_id=row.file_id, outcome="held_out") for row in read_rows(run.held_out)]
    write_outcomes(run.rows_outcome, outcomes)
    assert daemon._training() is State.JUDGING
    return daemon


def test_a_verdict_that_cannot_be_settled_is_none(
    judging: Daemon, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*arguments: object) -> None:
        raise DatabaseError("value out of range")

    monkeypatch.setattr(judging._settling, "settle", fail)
    caplog.set_level("INFO", "codelupe")
    with pytest.raises(DatabaseError):
        judging._judging()
    assert judging.verdict is None and judging.board.read().last_verdict is None
    assert "Verdict" not in caplog.text


def test_a_verdict_whose_commit_got_no_answer_is_told_after_all(
    judging: Daemon, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settle = judging._settling.settle

    def lose_the_answer(*arguments: Any) -> None:
        settle(*arguments)
        raise Unavailable("the connection was lost")

    monkeypatch.setattr(judging._settling, "settle", lose_the_answer)
    caplog.set_level("INFO", "codelupe")
    with pytest.raises(Unavailable):
        judging._judging()
    assert judging.verdict is None and "Verdict" not in caplog.text
    assert judging._starting() is State.WAITING
    assert judging.verdict is not None and not judging.verdict.promote
    assert caplog.text.count("Verdict") == 1
    judging.once = True
    assert judging._waiting() is State.STOPPED


# --- what `drop` says -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "holder", "live", "now", "said"),
    [
        (20, None, None, False, "No service is running. Start it with `codelupe up`."),
        (2, None, None, False, "No service is running. Start it with `codelupe up`. A run starts at 10 rows"),
        (20, "a", None, False, "The service starts a run at its next poll, or after its pause"),
        (2, "a", None, True, "The service starts a run at its next poll, or after its pause"),
        (20, "a", SimpleNamespace(run_id=7, state="training"), False, "A run starts after run 7, which is training"),
        (2, "a", None, False, "A run starts at 10, or with --train-now"),
        (0, "a", None, True, "A run starts as soon as there is one"),
    ],
)
def test_drop_says_what_happens_next(rows: int, holder: str | None, live: Any, now: bool, said: str) -> None:
    settings: Any = SimpleNamespace(min_new_files=10)
    assert _next(_Waiting(rows=rows, holder=holder, live=live), settings, now).startswith(said)
