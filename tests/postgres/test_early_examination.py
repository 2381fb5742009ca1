"""The process of the examination starts while the run ends, begins after it, and never outlives its use."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from test_claim_run import World

from db.pool import Pool
from service.cycle import launch
from service.cycle.daemon import Daemon
from service.web.state import State

TRAINER = """
cd "$2"
case "$1 $3" in
"run ")
    echo '{"time": 1, "event": "stage", "stage": "judge", "state": "begin"}' >> events.jsonl
    for _ in $(seq 200); do grep -q waits trainer.log && break; sleep 0.02; done
    mkdir -p adapter
    test -e fails && mv fails failed && exit 9
    test -e failed && sleep 0.6
    echo '{}' > report.json ;;
"examine --wait") echo waits; read line && echo begins ;;
*) echo "at once" ;;
esac
"""


@pytest.fixture
def daemon(pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Daemon:
    """Return a daemon whose next state is the training of a claimed run."""
    monkeypatch.setattr(launch, "TRAINER", ("sh", "-c", TRAINER, "sh"))
    world = World(pool, tmp_path / "home")
    recipe = world.settings.recipe
    recipe = replace(recipe, gate=replace(recipe.gate, examination=True))
    world.settings = replace(world.settings, recipe=recipe, check_interval_seconds=600.0, min_new_files=1)
    world.insert(20)
    made = world.daemon()
    for step in (made._starting, made._waiting, made._claiming):
        made._enter(step())
    assert made.state is State.TRAINING
    return made


def log_of(daemon: Daemon) -> list[str]:
    return daemon.home.run(daemon._run_id).log.read_text().split("\n")[:-1]


def test_the_examination_waits_for_the_end_of_the_run(daemon: Daemon) -> None:
    daemon._enter(daemon._training())
    assert daemon.state is State.JUDGING and log_of(daemon) == ["waits"]
    daemon._supervisor.examine(daemon.home.run(daemon._run_id), daemon._run_id)
    assert log_of(daemon) == ["waits", "begins"]


def test_it_ends_with_a_state_that_needs_no_examination(daemon: Daemon) -> None:
    daemon._enter(daemon._training())
    early = daemon._supervisor.examiner._early
    assert early is not None and early.wait(0) is None
    daemon._enter(State.PAUSED)
    assert early.wait(0) is not None and log_of(daemon) == ["waits"]


def test_after_a_crash_it_takes_no_memory_from_the_next_start(daemon: Daemon) -> None:
    run = daemon.home.run(daemon._run_id)
    (run.root / "fails").touch()
    daemon._enter(daemon._training())
    assert daemon.state is State.TRAINING and daemon._supervisor.examiner._early is None
    daemon._crashes = 0  # as if the service had been killed, too
    daemon._enter(daemon._training())
    assert daemon.state is State.JUDGING and log_of(daemon) == ["waits"]
    assert daemon._supervisor.examiner._early is None
