"""`codelupe status --watch`, on a real server and database, in a pseudo-terminal and in a pipe."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from stage import Stage
from terminal import Terminal

from service.cli.watch_source import Looker
from service.cli.watch_view import line
from service.errors import PreconditionError
from service.settings.home import address_noted, only_service, service_address
from service.web.board import Progress

COMMAND = [sys.executable, "-c", "from service.cli.main import main; main()", "status", "--watch", "--every", "0.2"]
HOSTILE = "worse\x1b]0;owned\x07\x1b[2J [bold]\u202e by 0.2"


class Service:
    """Serves a stage as a service in its folder does."""

    def __init__(self, stage: Stage) -> None:
        self._stage, self._open = stage, ExitStack()

    def start(self) -> None:
        self._open.enter_context(only_service(self._stage.home))
        where = urlsplit(self._open.enter_context(self._stage.served()))
        self._open.enter_context(address_noted(self._stage.home, str(where.hostname), where.port or 0))

    def stop(self) -> None:
        self._open.close()


@pytest.fixture
def service(stage: Stage) -> Iterator[Service]:
    stage.run("published", losses=(2.0, 2.0, 1.5))
    stage.run("refused", losses=(2.0, 1.5, 1.7), reason=HOSTILE)
    stage.run("training")
    stage.refresh()
    stage.waiting_files(118, too_short=4)
    stage.board.update(
        state="training",
        progress=Progress(run_id=3, step=37, steps_total=120, train_loss=1.234, tokens_per_second=3912.0,
                          seconds_left=130.0, misses=1, patience=3, gpu_memory_bytes=3 * 2**30, gpu_utilization=0.97,
                          gpu_power_watts=402.0, gpu_temperature_celsius=61.0),
        losses={"eval": 1.61, "anchor": 2.0, "current": 1.5},
    )  # fmt: skip
    found = Service(stage)
    found.start()
    yield found
    found.stop()


@pytest.fixture
def environment(stage: Stage, database_url: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CODELUPE_", "POSTGRES_"))}
    return {
        **kept, "CODELUPE_HOME": str(stage.home.root), "DATABASE_URL": database_url, "CODELUPE_RECIPE": "embedded",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }  # fmt: skip


def test_a_terminal_shows_the_run_and_is_clean_afterwards(
    stage: Stage, service: Service, environment: dict[str, str], tmp_path: Path
) -> None:
    terminal = Terminal(COMMAND, environment, cwd=tmp_path)
    shown = terminal.read_until(lambda text: "Ctrl-C ends" in text)
    plain = re.sub(r"\x1b\[[\d;]*m", "", shown)
    for said in (
        "Healthy. Training run 3, 31 %, 2 min left", "arrived 122", "37/120 steps", "1.6100  against 2.0000 base",
        "after 2 more evaluations", "3,912 tokens/s", "3.0 GiB, 97% busy, 402 W, 61 °C",
        "…✕✓", r"worse\x1b]0;owned\x07\x1b[2J [bold]\u202e by 0.2",
    ):  # fmt: skip
        assert said in plain, said
    assert "\x1b]0;owned" not in shown and "\u202e" not in shown
    stage.board.trouble("disk", "0.1 GB are free. Free some space")
    terminal.read_until(lambda text: "! 0.1 GB are free" in text)
    terminal.read_until(lambda text: width_of_last_frame(text) == 100)
    terminal.resize(60)
    terminal.read_until(lambda text: width_of_last_frame(text) == 60)
    terminal.press_ctrl_c()
    assert terminal.end() == 0
    assert terminal.text.count("\x1b[?1049h") == terminal.text.count("\x1b[?1049l") == 1
    assert terminal.text.rstrip().endswith("\x1b[?25h") or "\x1b[?25h" in terminal.text[-40:]  # the cursor is back


def width_of_last_frame(text: str) -> int:
    """Return the width of the last screen that is whole. Each begins at the upper left corner."""
    frame = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", text.split("\x1b[H")[-2])
    return max(len(line) for line in frame.split("\r\n"))


def test_a_pipe_gets_a_plain_line_for_each_change_and_a_service_is_followed(
    stage: Stage, service: Service, environment: dict[str, str], tmp_path: Path
) -> None:
    watching = subprocess.Popen(
        COMMAND, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert watching.stdout is not None
    first = watching.stdout.readline()
    assert "Healthy. Training run 3" in first and "loss 1.234" in first and r"refused, loss 1.7000: worse\x1b" in first
    assert all(letter.isprintable() or letter == "\n" for letter in first)
    time.sleep(0.8)  # looks without a change
    stage.run("failed", reason="out of memory")
    assert "last: run 4 failed: out of memory" in watching.stdout.readline()
    service.stop()
    assert "No service runs in this folder. Run 3 is training: the next start" in watching.stdout.readline()
    service.start()
    assert "Healthy. Training run 3" in watching.stdout.readline()
    watching.send_signal(signal.SIGINT)
    rest, errors = watching.communicate(timeout=20)
    assert (watching.returncode, rest, errors) == (0, "", "")


def test_json_is_one_object_a_line_and_a_reader_may_leave(
    service: Service, environment: dict[str, str], tmp_path: Path
) -> None:
    watching = subprocess.Popen(
        [*COMMAND, "--json"], env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert watching.stdout is not None and watching.stderr is not None
    looks = [json.loads(watching.stdout.readline()) for _ in range(2)]
    assert [look["source"] for look in looks] == ["service", "service"]
    assert looks[0]["run"]["step"] == 37 and looks[0]["runs"][1]["reason"] == HOSTILE
    watching.stdout.close()
    assert watching.wait(20) == 0 and watching.stderr.read() == ""


def test_without_a_service_the_database_and_the_run_s_events_are_shown(
    stage: Stage, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.run("published", losses=(2.0, 2.0, 1.5))
    run_id = stage.run("training")
    stage.events(run_id, 30, total=60)
    settings = replace(stage.settings, database_url=database_url)
    looker = Looker(settings)
    moment = looker.look()
    assert moment.source == "database" and moment.now["run"]["step"] == 30
    assert "run 2: 30/60 steps" in line(moment) and "adapter v1 live" in line(moment)
    monkeypatch.setattr(looker, "_read", fail)
    assert "as it was: no answer" in str(looker.look().note) and looker.look().now == moment.now
    with pytest.raises(PreconditionError):
        fresh = Looker(settings)
        monkeypatch.setattr(fresh, "_read", fail)
        fresh.look()


def test_the_address_of_a_killed_service_does_not_count(stage: Stage) -> None:
    with only_service(stage.home), address_noted(stage.home, "127.0.0.1", 8090):
        left = stage.home.address.read_text()
        assert service_address(stage.home) == ("127.0.0.1", 8090)
    assert not stage.home.address.exists()
    stage.home.address.write_text(left)
    assert service_address(stage.home) is None


def fail() -> Any:
    raise PreconditionError("no answer")
