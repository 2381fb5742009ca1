"""How long steps are shown: bars in a terminal, plain lines in a pipe, nothing between lines of JSON."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from terminal import Terminal

from service import progress
from service.cli import progress as shown_module
from service.cli.progress import progress_shown
from service.cycle.telling import Telling
from service.progress import reported_to

ROOT = Path(__file__).parents[2]
STEPS = """
import sys, time
from service import logs, progress
from service.cli import progress as shown
shown.LINE_SECONDS = 0.2
logs.set_up(sys.argv[1])
show = logs.progress_printer(sys.argv[1])
with shown.progress_shown(sys.argv[1], only_in_terminal="--only" in sys.argv):
    for step in range(1, 13):
        progress.report("training", f"{step}/12 steps, \\x1b[2Jloss [bold]", step, 12)
        if step in (3, 6):
            logs.event("A line of the log", number=step, text="wide " * 40)
            show("stage", f"number {step}")
        time.sleep(0.1)
    progress.ended("training")
    print("the end")
"""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", STEPS, *arguments], env=environment(), capture_output=True, text=True, timeout=30,
        check=True,
    )  # fmt: skip


def test_a_terminal_has_a_bar_below_whole_lines(tmp_path: Path) -> None:
    terminal = Terminal([sys.executable, "-c", STEPS, "text"], environment(), cwd=tmp_path, columns=90)
    assert terminal.end() == 0
    plain = re.sub(r"\x1b\[[\d;?]*[A-Za-ln-z]", "", re.sub(r"\x1b\[[\d;]*m", "", terminal.text))
    assert re.search(r"training ━+.* \d+/12 steps, \\x1b\[2Jloss \[bold\]", plain)
    assert "\x1b[2J" not in terminal.text
    for number in (3, 6):
        assert f'number={number} text="{"wide " * 40}"' in plain.replace("\r\n", "\n")  # not cut into two lines
        assert f"· stage        number {number}" in plain
    assert screen_of(terminal.text)[-1] == "the end"
    assert not any("━" in line for line in screen_of(terminal.text))


def screen_of(text: str) -> list[str]:
    """What is left on the terminal: lines that were erased are gone."""
    lines, row = [""], 0
    for token in re.split(r"(\r\n|\r|\x1b\[[\d;?]*[A-Za-z])", text):
        if token == "\r\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif token == "\x1b[2K":
            lines[row] = ""
        elif re.fullmatch(r"\x1b\[\d+A", token):
            row -= int(token[2:-1])
        elif not token.startswith(("\x1b", "\r")):
            lines[row] += token
    return [line for line in lines if line]


def test_a_pipe_has_a_plain_line_now_and_then() -> None:
    done = run("text")
    lines = [line for line in done.stderr.splitlines() if line.startswith("training")]
    assert 3 <= len(lines) <= 6 and all(
        re.fullmatch(r"training  \d+/12 steps, \\x1b\[2Jloss \[bold\]", x) for x in lines
    )
    assert "\x1b" not in done.stderr + done.stdout and done.stdout.splitlines()[-1] == "the end"


@pytest.mark.parametrize("arguments", [("json",), ("text", "--only")])
def test_a_log_in_json_and_a_service_in_a_pipe_have_none(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert "training" not in done.stdout + done.stderr


class Seen:
    """Keeps what is reported."""

    def __init__(self) -> None:
        self.steps: dict[str, str] = {}
        self.said: list[str] = []

    def show(self, name: str, said: str, done: float, total: float | None, *, is_logged: bool) -> None:
        self.steps[name] = said
        self.said.append(f"{name}: {said}")

    def end(self, names: tuple[str, ...]) -> None:
        for name in names:
            self.steps.pop(name, None)


def test_a_trainer_s_events_become_steps() -> None:
    seen, telling = Seen(), Telling("trial 1")
    events: list[dict[str, Any]] = [
        {"event": "started"},
        {"event": "stage", "stage": "samples", "state": "begin"},
        {"event": "stage", "stage": "model", "state": "begin"},
        {"event": "progress", "stage": "download", "done": 3_100_000_000, "total": 9_000_000_000},
        {"event": "progress", "stage": "samples", "done": 1024, "total": 4096},
        {"event": "progress", "stage": "model", "done": 20, "total": 300},
        {"event": "stage", "stage": "samples", "state": "end"},
        {"event": "stage", "stage": "model", "state": "end"},
        {"event": "stage", "stage": "fit", "state": "begin"},
        {"event": "step", "step": 1, "steps_total": 120, "time": 100.0, "loss": "nan"},
        {"event": "progress", "stage": "evaluation", "done": 5, "total": 61},
        {"event": "evaluation"},
        {"event": "step", "step": 37, "steps_total": 120, "time": 136.0, "loss": 1.2341, "tokens_per_second": 3912.4},
        {"event": "progress", "stage": "unknown", "done": "x", "total": None},
        {"event": "step", "step": None},
    ]
    with reported_to(seen):
        for event in events:
            telling.tell(event)
        assert seen.steps == {"trial 1: training": "37/120 steps, loss 1.234, 3,912 tokens/s, 1 min left"}
        telling.end()
    assert not seen.steps
    for said in ("downloading the base: 3.1/9.0 GB", "reading rows: 1,024/4,096 rows", "measuring: 5/61 samples",
                 "loading the base: 20/300 tensors", "training: 1/120 steps"):  # fmt: skip
        assert f"trial 1: {said}" in seen.said


def test_what_the_log_says_is_not_said_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shown_module, "LINE_SECONDS", 0.0)
    with progress_shown("text"):
        progress.report("training", "1/9 steps", is_logged=True)
        progress.report("reading", "1/9 rows")
        progress.ended("reading", "never began")
    progress.report("nobody", "listens")
    assert capsys.readouterr().err == "reading  1/9 rows\n"
