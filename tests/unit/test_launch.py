"""Trainers that do not exit by themselves."""

import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from db.errors import LeaseLost
from service.cycle import launch
from service.cycle.examiner import Examiner
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


WAITING = """
import sys
print("waits" if "--wait" in sys.argv else "at once", flush=True)
if "--wait" in sys.argv and not sys.stdin.buffer.read(1):
    sys.exit(75)
print("begins", flush=True)
"""


@pytest.fixture
def examiner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return an examiner whose processes say what they do."""
    monkeypatch.setattr(launch, "TRAINER", (sys.executable, "-c", WAITING))
    settings = SimpleNamespace(
        trainer_secrets={}, sandbox_socket=None, recipe=SimpleNamespace(gate=SimpleNamespace(examination=True))
    )
    made = Examiner(settings)  # type: ignore[arg-type]
    yield made
    made.drop()


def said(run: RunDirectory, text: str) -> None:
    deadline = time.monotonic() + 10
    while not run.log.exists() or text not in run.log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_early_examination_begins_when_it_is_told_to(examiner: Examiner, tmp_path: Path):
    run = RunDirectory(tmp_path)
    examiner.start_early(run)
    examiner.start_early(run)
    said(run, "waits")
    assert "begins" not in run.log.read_text()
    assert examiner.process(run).wait(10) == 0
    assert run.log.read_text() == "waits\nbegins\n"
    assert examiner.process(run).wait(10) == 0
    assert run.log.read_text().endswith("at once\nbegins\n")


def test_an_early_examination_of_another_run_or_that_has_ended_is_not_used(examiner: Examiner, tmp_path: Path):
    run, other = RunDirectory(tmp_path), RunDirectory(tmp_path / "other")
    other.root.mkdir()
    examiner.start_early(other)
    early = examiner._early
    assert early is not None and examiner.process(run).wait(10) == 0
    assert early.wait(0) is not None and "begins" not in other.log.read_text()
    examiner.start_early(run)
    assert examiner._early is not None
    examiner._early.kill()
    assert examiner.process(run).wait(10) == 0


def test_an_early_examination_ends_when_it_is_not_needed(examiner: Examiner, tmp_path: Path):
    run = RunDirectory(tmp_path)
    examiner.start_early(run)
    early = examiner._early
    assert early is not None
    examiner.drop()
    assert early.wait(0) is not None and "begins" not in run.log.read_text()
    examiner._settings.recipe.gate.examination = False  # type: ignore[misc]
    examiner.start_early(run)
    assert examiner._early is None


def test_the_real_examination_waits_without_the_gpu_and_ends_with_the_service(tmp_path: Path):
    run = RunDirectory(tmp_path)
    process = TrainerProcess(run, {}, "examine", waits=True)
    assert process.wait(0.2) is None
    assert process._process.stdin is not None
    process._process.stdin.close()  # as when the service is killed
    assert process.wait(60) == 75
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trainer.log"]
    again = TrainerProcess(run, {}, "examine", waits=True)
    assert again.begin() and again.wait(60) == 2  # not a finished run
    assert "is not a finished run" in run.log.read_text()
