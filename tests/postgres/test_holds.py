"""A pause that a person asks for: nothing is claimed, the run in progress may wait, and a restart changes nothing."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from test_claim_run import STREAM, World

from db import holds
from db.errors import DatabaseError
from db.pool import Pool
from service.cycle import holding, launch
from service.web.state import State

TRAINER = ("sh", "-c", 'echo "started" >> "$2/trainer.log"; trap "exit 75" TERM; while :; do sleep 0.05; done', "sh")
"""A trainer that runs until it is asked to stop."""


@pytest.fixture
def world(pool: Pool, tmp_path: Path) -> World:
    made = World(pool, tmp_path / "home")
    made.settings = replace(made.settings, check_interval_seconds=600.0, min_new_files=1)
    return made


def test_a_paused_stream_claims_nothing_until_it_is_resumed(world: World) -> None:
    world.insert(20)
    daemon = world.daemon()
    daemon._starting()
    holds.hold(world.pool, STREAM, stop_training=False)
    assert daemon._waiting() is State.ON_HOLD
    resume = threading.Timer(0.5, lambda: holds.release(world.pool, STREAM))
    began = time.monotonic()
    resume.start()
    assert daemon._on_hold() is State.ON_HOLD
    assert time.monotonic() - began < 5, "the release wakes the service"
    resume.join()
    assert daemon._on_hold() is State.STARTING
    assert daemon._starting() is State.WAITING
    assert daemon._waiting() is State.CLAIMING


def test_a_pause_is_healthy_and_says_how_it_ends(world: World) -> None:
    daemon = world.daemon()
    daemon._starting()
    holds.hold(world.pool, STREAM, stop_training=False)
    daemon._enter(daemon._waiting())
    threading.Timer(0.1, lambda: holds.hold(world.pool, STREAM, stop_training=False)).start()
    daemon._enter(daemon._on_hold())
    status, reason = daemon.board.read().health()
    assert status == "healthy"
    assert reason.startswith("paused on request since 20") and "codelupe resume" in reason


def test_stop_and_save_stops_the_trainer_and_a_resume_goes_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "TRAINING_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(launch, "TRAINER", TRAINER)
    world.insert(20)
    daemon = world.daemon()
    daemon._enter(daemon._starting())
    daemon._enter(daemon._waiting())
    daemon._enter(daemon._claiming())
    run, log = daemon._run_id, world.home.run(daemon._run_id).log
    stop = threading.Timer(1.0, lambda: holds.hold(world.pool, STREAM, stop_training=True))
    stop.start()
    daemon._enter(daemon._training())
    stop.join()
    assert daemon.state is State.ON_HOLD and log.read_text().count("started") == 1

    again = world.daemon()  # a restart does not end the pause
    again._enter(again._starting())
    assert again.state is State.ON_HOLD
    holds.release(world.pool, STREAM)
    again._enter(again._on_hold())
    again._enter(again._starting())
    assert again.state is State.TRAINING and again._run_id == run


def test_a_plain_pause_lets_the_run_in_progress_go_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.insert(20)
    daemon = world.daemon()
    for step in (daemon._starting, daemon._waiting, daemon._claiming):
        daemon._enter(step())
    holds.hold(world.pool, STREAM, stop_training=False)
    assert not daemon._holding.stops_training()
    again = world.daemon()
    assert again._starting() is State.TRAINING


def test_the_board_shows_a_pause_while_the_run_goes_on_and_when_it_ended_elsewhere(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holding, "TRAINING_LOOK_SECONDS", 0.0)
    daemon = world.daemon()
    daemon._starting()
    holds.hold(world.pool, STREAM, stop_training=False)
    assert not daemon._holding.stops_training_now()
    assert daemon.board.read().held_since is not None
    holds.release(world.pool, STREAM)
    for look in (daemon._holding.stops_training_now, daemon._holding.asked):
        daemon.board.update(held_since=1.0)
        look()
        assert daemon.board.read().held_since is None
    holds.hold(world.pool, STREAM, stop_training=False)
    daemon._standby()
    assert daemon.board.read().held_since is not None


def test_a_service_that_runs_once_does_not_wait_for_a_resume(world: World) -> None:
    world.insert(20)
    daemon = world.daemon()
    daemon.once = True
    daemon._enter(daemon._starting())
    holds.hold(world.pool, STREAM, stop_training=False)
    daemon._enter(daemon._waiting())
    daemon._enter(daemon._on_hold())
    assert daemon.state is State.STOPPED
    assert daemon.problem is not None and "codelupe resume" in daemon.problem


def test_a_later_plain_pause_does_not_weaken_a_stop(world: World) -> None:
    world.daemon()._starting()
    holds.hold(world.pool, STREAM, stop_training=True)
    holds.hold(world.pool, STREAM, stop_training=False)
    found = holds.held(world.pool, STREAM)
    assert found is not None and found.stops_training
    assert holds.release(world.pool, STREAM) and not holds.release(world.pool, STREAM)


def test_a_stream_that_does_not_exist_cannot_be_paused(pool: Pool) -> None:
    with pytest.raises(DatabaseError, match="there is no stream other"):
        holds.hold(pool, "other", stop_training=False)
