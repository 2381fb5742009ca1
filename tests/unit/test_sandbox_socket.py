"""The sandbox behind a Unix socket: a process of its own, as in its container."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.unit.sandboxed import double
from trainer.errors import UnusableInput
from trainer.evaluate.execute import choose_runner
from trainer.evaluate.sandbox.bubblewrap import check_available
from trainer.evaluate.sandbox.client import RemoteSandbox
from trainer.evaluate.sandbox.server import MOST_BYTES

ROOT = Path(__file__).parents[2]
TASK = double("assert double(2) == 4")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    try:
        check_available()
    except UnusableInput as error:
        pytest.skip(str(error))
    path = tmp_path_factory.mktemp("sandbox") / "socket"
    path.write_text("left by an earlier start")
    command = [sys.executable, "-m", "trainer", "sandbox", "--listen", str(path)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert f"listening on {path}" in process.stderr.readline()
        yield path
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0 and not path.exists()


def raw(path: Path, sent: bytes) -> dict[str, object]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(path))
        try:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
        except BrokenPipeError:  # it answered before it had read all
            pass
        answer: dict[str, object] = json.loads(connection.makefile("rb").readline())
        return answer


def test_verdicts_are_those_of_the_sandbox(path, monkeypatch):
    monkeypatch.setenv("SANDBOX_SOCKET", str(path))
    run_task = choose_runner()
    with ThreadPoolExecutor(6) as threads:
        codes = ["def double(x): return 2 * x", "def double(x): return 3 * x", "import os; os._exit(0)"] * 2
        outcomes = list(threads.map(lambda code: run_task(TASK, code), codes))
    assert [outcome.passed for outcome in outcomes] == [True, False, False] * 2
    assert outcomes[1].reason.startswith("AssertionError") and outcomes[0].seconds > 0
    assert "bwrap" in RemoteSandbox(path).check()


@pytest.mark.parametrize(
    ("sent", "problem"),
    [
        (b"{}\n", "not a task"),
        (b"[]\n", "not a task"),
        (b"no json\n", "not a task"),
        (b'{"task": {"task_id": "x"}, "completion": ""}\n', "not a task"),
        (b'{"ping": true}', "one line"),
        (b"", "one line"),
        (b"x" * (MOST_BYTES + 10), "one line"),
    ],
)
def test_what_is_no_task_gets_an_error_and_the_next_is_served(path, sent, problem):
    assert problem in str(raw(path, sent)["error"])
    assert RemoteSandbox(path).run_task(TASK, "def double(x): return 2 * x").passed


def test_a_sandbox_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("SANDBOX_SOCKET", str(tmp_path / "socket"))
    with pytest.raises(UnusableInput, match=r"SANDBOX_SOCKET\) does not answer .*--profile evaluation up -d sandbox"):
        choose_runner()


def test_a_socket_that_cannot_be_made_is_an_error(tmp_path):
    command = [sys.executable, "-m", "trainer", "sandbox", "--listen", str(tmp_path / "missing" / "socket")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
