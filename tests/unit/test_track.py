"""Trackers never affect the run: real TensorBoard and W&B files, hangs and failures."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from trainer.recipe import Recipe
from trainer.recipe_tracking import Tracking
from trainer.run_dir import RunDirectory
from trainer.track import trackers
from trainer.track.prediction import Prediction
from trainer.track.trackers import Trackers, Worker, open_trackers
from trainer.track.wandb_tracker import WandbBackend, wandb_mode

RECIPE = Recipe(name="r", stream="qwen")
QUIET = Recipe(name="r", stream="qwen", tracking=Tracking(tensorboard=False))
PREDICTION = Prediction(step=3, file_id=7, prompt="def f():", expected="return 1", answer="```\nreturn 2\n```")
UNREACHABLE = {"WANDB_API_KEY": "k3y" * 13 + "x", "WANDB_BASE_URL": "http://127.0.0.1:9"}


@pytest.fixture
def run_directory(tmp_path: Path) -> RunDirectory:
    root = tmp_path / "000042"
    root.mkdir()
    return RunDirectory(root)


class Problems(list[tuple[str, str]]):
    def __call__(self, name: str, message: str) -> None:
        self.append((name, message))


def test_tensorboard_files_hold_what_was_logged(run_directory: RunDirectory) -> None:
    problems = Problems()
    opened = open_trackers(RECIPE, run_directory, run_name="n", on_problem=problems, environment={})
    for step in range(5):
        opened.log(step, {"train/loss": 1.0 / (step + 1), "train/learning_rate": 0.5})
    opened.predictions(5, [PREDICTION])
    opened.close()
    opened.log(6, {"train/loss": 0.0})  # closed: dropped
    assert problems == []
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_directory.root / "tensorboard"))
    events.Reload()
    losses = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert losses == [(step, pytest.approx(1.0 / (step + 1))) for step in range(5)]
    (text,) = events.Tensors("predictions/7/text_summary")
    assert "    return 2" in text.tensor_proto.string_val[0].decode()


def test_no_tracker_is_opened_by_default(run_directory: RunDirectory) -> None:
    opened = open_trackers(QUIET, run_directory, run_name="n", on_problem=Problems(), environment={})
    opened.log(1, {"train/loss": 1.0})
    opened.close()
    assert list(run_directory.root.iterdir()) == []


@pytest.mark.parametrize(
    ("environment", "mode"),
    [
        ({}, None),
        ({"WANDB_API_KEY": " "}, None),
        ({"WANDB_API_KEY": "k"}, "online"),
        ({"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, "offline"),
        ({"WANDB_MODE": "offline"}, "offline"),
        ({"WANDB_API_KEY": "k", "WANDB_MODE": "disabled"}, None),
    ],
)
def test_when_wandb_is_on(environment: Mapping[str, str], mode: str | None) -> None:
    assert wandb_mode(environment) == mode


def test_wandb_offline_writes_a_run_file(run_directory: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "FINISH_SECONDS", 60.0)
    problems = Problems()
    opened = open_trackers(
        QUIET, run_directory, run_name="n", on_problem=problems, environment={"WANDB_MODE": "offline"}
    )
    opened.log(1, {"train/loss": 0.123456})
    opened.predictions(2, [PREDICTION])
    opened.close()
    assert problems == []
    (run_file,) = run_directory.root.glob("wandb/offline-run-*/run-qwen-000042-??????.wandb")
    content = run_file.read_bytes()
    assert b"train/loss" in content and b"0.123456" in content
    assert b"codelupe-qwen-training" in content
    (table,) = run_directory.root.glob("wandb/offline-run-*/files/media/table/*.json")
    assert "return 2" in table.read_text()


def test_an_unreachable_wandb_neither_blocks_nor_outlives_the_run(tmp_path: Path) -> None:
    """It runs in its own process, because wandb's hooks could delay the exit."""
    (tmp_path / "000001").mkdir()
    code = f"""
import time
from pathlib import Path
from trainer.recipe import Recipe
from trainer.recipe_tracking import Tracking
from trainer.run_dir import RunDirectory
from trainer.track import trackers
trackers.FINISH_SECONDS = 3.0
opened = trackers.open_trackers(
    Recipe(name="r", stream="s", tracking=Tracking(tensorboard=False)),
    RunDirectory(Path({str(tmp_path)!r}) / "000001"),
    run_name="n",
    on_problem=lambda name, message: print("problem", name, message),
    environment={UNREACHABLE!r},
)
started = time.monotonic()
for step in range(3000):
    opened.log(step, {{"train/loss": 1.0}})
print("logging took", time.monotonic() - started < 1)
opened.close()
print("closing took", time.monotonic() - started < 6)
"""
    started = time.monotonic()
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert time.monotonic() - started < 20
    lines = finished.stdout.splitlines()
    assert "logging took True" in lines and "closing took True" in lines
    problems = [line for line in lines if line.startswith("problem")]
    assert len(problems) == 2
    assert "cannot keep up" in problems[0] and "did not finish within 3 s" in problems[1]
    assert UNREACHABLE["WANDB_API_KEY"] not in finished.stdout + finished.stderr


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A server that accepts connections, and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        accepted: list[socket.socket] = []

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    accepted.append(listening.accept()[0])

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
        assert accepted, "nobody came"
        for connection in accepted:
            connection.close()


def test_a_server_that_never_answers_costs_nothing(
    run_directory: RunDirectory, silent_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "FINISH_SECONDS", 4.0)
    problems, environment = Problems(), {"WANDB_API_KEY": "k" * 40, "WANDB_BASE_URL": silent_server}
    opened = open_trackers(QUIET, run_directory, run_name="n", on_problem=problems, environment=environment)
    started = time.monotonic()
    for step in range(100):
        opened.log(step, {"train/loss": 1.0})
    assert time.monotonic() - started < 0.5
    opened.close()
    assert time.monotonic() - started < 6
    assert problems == [("wandb", "did not finish within 4 s. Its remaining entries are lost")]


def test_a_full_disk_costs_the_curves_and_nothing_else(
    run_directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is on a small disk of its own, which the curves fill."""
    monkeypatch.setattr(trackers, "FINISH_SECONDS", 8.0)
    folder = run_directory.root / "wandb"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1536k", "none", folder], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        problems = Problems()
        opened = open_trackers(
            QUIET, run_directory, run_name="n", on_problem=problems, environment={"WANDB_MODE": "offline"}
        )
        started = time.monotonic()
        for step in range(950):
            opened.log(step, {f"train/{name}/{step}": 1.0 for name in range(30)})
        assert time.monotonic() - started < 1
        opened.close()
        assert time.monotonic() - started < 12
        usage = shutil.disk_usage(folder)
        assert usage.free < 1 << 20, "the disk was not filled"
        assert "is full. W&B loses what it cannot write there" in problems[0][1]
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_dead_wandb_process_is_reported(run_directory: RunDirectory) -> None:
    backend = WandbBackend(QUIET, run_directory, run_name="n", mode="offline", environment={"WANDB_MODE": "offline"})
    backend.open()
    assert backend._process is not None
    backend._process.kill()
    backend._process.wait()
    with pytest.raises((RuntimeError, BrokenPipeError)):
        backend.log(1, {"train/loss": 1.0})
    backend.abandon()


# --- trackers that misbehave --------------------------------------------------------------------------------


class Recording:
    """A backend that records its calls."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.threads: set[str] = set()

    def _note(self, what: str) -> None:
        self.seen.append(what)
        self.threads.add(threading.current_thread().name)

    def open(self) -> None:
        self._note("open")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._note(f"log {step}")

    def predictions(self, step: int, records: Sequence[Prediction]) -> None:
        self._note("predictions")

    def texts(self, step: int, values: Mapping[str, str]) -> None:
        self._note("texts")

    def artifact(self, **what: Any) -> None:
        self._note("artifact")

    def close(self) -> None:
        self._note("close")

    def abandon(self) -> None:
        self._note("abandon")


class Raising(Recording):
    def log(self, step: int, values: Mapping[str, float]) -> None:
        raise ConnectionError(f"no route for the key s3cret at step {step}")

    def close(self) -> None:
        raise OSError("disk full")


class Hanging(Recording):
    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._note("hangs")
        time.sleep(3600)


class NeverOpens(Recording):
    def open(self) -> None:
        raise RuntimeError("no")


def test_all_calls_run_in_order_in_one_thread() -> None:
    backend, problems = Recording(), Problems()
    opened = Trackers([Worker("one", backend, problems)])
    for step in range(50):
        opened.log(step, {"a": 1.0})
    opened.predictions(50, [PREDICTION])
    opened.close()
    assert backend.seen == ["open", *(f"log {step}" for step in range(50)), "predictions", "close"]
    assert backend.threads == {"tracker-one"}
    assert problems == []


def test_each_kind_of_failure_is_reported_once_without_secrets() -> None:
    problems = Problems()
    healthy = Recording()
    opened = Trackers([Worker("bad", Raising(), problems, secret="s3cret"), Worker("good", healthy, problems)])
    for step in range(20):
        opened.log(step, {"a": 1.0})
    opened.close()
    assert problems == [
        ("bad", "log failed: ConnectionError: no route for the key *** at step 0"),
        ("bad", "close failed: OSError: disk full"),
    ]
    assert len(healthy.seen) == 22


def test_a_tracker_that_hangs_is_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "FINISH_SECONDS", 0.5)
    problems, hanging, healthy = Problems(), Hanging(), Recording()
    opened = Trackers([Worker("stuck", hanging, problems), Worker("good", healthy, problems)])
    started = time.monotonic()
    for step in range(trackers.QUEUE_LENGTH + 500):
        opened.log(step, {"a": 1.0})
        if step % 100 == 0:
            time.sleep(0.01)
    assert time.monotonic() - started < 2
    opened.close()
    assert time.monotonic() - started < 3
    assert hanging.seen[-1] == "abandon"
    kinds = [message.split(":")[0].split(" within")[0] for name, message in problems if name == "stuck"]
    assert kinds == ["cannot keep up", "did not finish"]
    assert healthy.seen[-1] == "close"


def test_a_tracker_that_does_not_open_receives_nothing() -> None:
    problems, backend = Problems(), NeverOpens()
    opened = Trackers([Worker("closed", backend, problems)])
    for step in range(2000):
        opened.log(step, {"a": 1.0})
    opened.close()
    assert ("closed", "open failed: RuntimeError: no") in problems
    assert backend.seen == []


def test_callers_may_change_logged_values_afterwards() -> None:
    seen: list[Mapping[str, float]] = []

    class Keeping(Recording):
        def log(self, step: int, values: Mapping[str, float]) -> None:
            time.sleep(0.05)
            seen.append(values)

    opened = Trackers([Worker("one", Keeping(), Problems())])
    values = {"a": 1.0}
    opened.log(1, values)
    values["a"] = 2.0
    opened.close()
    assert seen == [{"a": 1.0}]
