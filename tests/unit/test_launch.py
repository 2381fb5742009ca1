"""Trainers that do not exit by themselves."""

import sys
import threading
import time
from pathlib import Path

import pytest

from db.errors import LeaseLost
from service.cycle import launch
from service.cycle.launch import TrainerProcess, watch_to_end
from trainer.run_dir import RunDirectory

STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("there", flush=True)
time.sleep(20)
"""


@pytest.fixture
def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a running trainer that ignores requests to stop."""
    monkeypatch.setattr(launch, "TRAINER", (sys.executable, "-c", STUBBORN))
    run = RunDirectory(tmp_path)
    made = TrainerProcess(run, {})
    while not run.log.read_text():
        time.sleep(0.02)
    yield made
    made.kill()


def test_a_trainer_that_does_not_stop_is_killed(process: TrainerProcess, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(launch, "STOP_GRACE_SECONDS", 0.5)
    stop = threading.Event()
    stop.set()
    assert watch_to_end(process, stop.is_set, lambda: None) is None
    assert process.wait(0) == -9


def test_an_unwatched_trainer_is_killed(process: TrainerProcess):
    def taken() -> None:
        raise LeaseLost("another service has the stream")

    with pytest.raises(LeaseLost):
        watch_to_end(process, lambda: False, taken)
    assert process.wait(0) == -9
