"""What the sandbox's tests share: a task, other users, and a naive judge that protects nothing."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trainer.errors import UnusableInput
from trainer.evaluate.sandbox.bubblewrap import NOBODY, check_available
from trainer.evaluate.suites import Task

DATA = Path(__file__).parents[2] / ".." / "shared" / "data"
USERS = ("root", "an ordinary user")

NAIVE = """
import sys
def judge(code, tests):
    namespace = {"__name__": "candidate"}
    exec(code, namespace)
    for test in tests:
        exec(test, namespace)
judge(sys.argv[1], [sys.argv[2]])
"""


def double(tests: str) -> Task:
    """A task whose function doubles its argument."""
    return Task(
        task_id="double", form="mbpp", prompt="Double it.", entry_point="double", tests=tests, solution="double = 0"
    )


def as_user(user: str, action: Callable[[], Any]) -> Any:
    """Run an action as root, or as an ordinary user in a process of its own. Skip where this cannot be."""
    if user == "root":
        if os.geteuid():
            pytest.skip("only root can try this as root")
        return _available(action)()
    return _forked(action) if os.geteuid() == 0 else _available(action)()


def naive_pass(code: str, tests: str, folder: Path) -> bool:
    """Whether code passes where nothing protects the verdict."""
    command = [sys.executable, "-c", NAIVE, code, tests]
    return subprocess.run(command, cwd=folder, capture_output=True, timeout=60, check=False).returncode == 0


def processes(marker: str) -> list[int]:
    """Processes whose command line has the marker."""
    return [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/cmdline") if marker in "".join(_text(path))]


def _text(path: Path) -> Iterator[str]:
    try:
        yield path.read_bytes().decode(errors="replace")
    except OSError:
        return


def _available(action: Callable[[], Any]) -> Callable[[], Any]:
    try:
        check_available()
    except UnusableInput as error:
        pytest.skip(str(error))
    return action


def _forked(action: Callable[[], Any]) -> Any:
    read_from, write_to = os.pipe()
    if not (child := os.fork()):
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            answer = _attempt(action)
            with os.fdopen(write_to, "wb") as file:
                pickle.dump(answer, file)
        finally:
            os._exit(0)
    os.close(write_to)
    with os.fdopen(read_from, "rb") as file:
        kind, value = pickle.load(file)
    os.waitpid(child, 0)
    if kind == "skip":
        pytest.skip(value)
    if kind == "raise":
        raise value
    return value


def _attempt(action: Callable[[], Any]) -> tuple[str, Any]:
    try:
        check_available()
    except UnusableInput as error:
        return "skip", str(error)
    try:
        return "value", action()
    except Exception as error:  # noqa: BLE001 — raised again in the test's process
        return "raise", error
