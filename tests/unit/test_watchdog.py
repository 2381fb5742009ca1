"""The watchdog ends the process if the loop hangs, but not if it waits."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from service.cycle import watchdog
from service.web.board import Board, Snapshot


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "CHECK_SECONDS", 0.02)
    monkeypatch.setattr(watchdog, "PATIENCE_SECONDS", 0.4)


def test_a_loop_that_stands_still_ends_the_process():
    ended = threading.Event()
    with watchdog.watched(Board(Snapshot()), ended.set):
        assert ended.wait(10)


def test_a_loop_that_beats_is_left_alone():
    board, ended = Board(Snapshot()), threading.Event()
    with watchdog.watched(board, ended.set):
        for _ in range(60):
            board.beat()
            time.sleep(0.02)
    assert not ended.is_set()


def test_notes_of_other_threads_do_not_count_as_a_heartbeat():
    board, ended = Board(Snapshot()), threading.Event()
    with watchdog.watched(board, ended.set):
        deadline = time.monotonic() + 10
        while not ended.is_set() and time.monotonic() < deadline:
            board.note(served_version=1)
            time.sleep(0.02)
    assert ended.is_set()


def test_a_process_that_hangs_ends_and_prints_where():
    program = (
        "import time\nfrom service.cycle import watchdog\nfrom service.web.board import Board, Snapshot\n"
        "watchdog.CHECK_SECONDS, watchdog.PATIENCE_SECONDS = 0.02, 0.1\n"
        "def a_loop_that_hangs():\n    time.sleep(60)\n"
        "with watchdog.watched(Board(Snapshot())):\n    a_loop_that_hangs()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == watchdog.EXIT_CODE
    assert "a_loop_that_hangs" in done.stderr
