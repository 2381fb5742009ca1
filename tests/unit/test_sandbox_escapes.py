"""Escapes from the sandbox, each tried as root and as an ordinary user. None may succeed."""

from __future__ import annotations

import os
import re
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

from tests.unit.sandbox_attacks import OUTSIDE, RESOURCES, VERDICT, Attack
from tests.unit.sandboxed import USERS, as_user, double, naive_pass, processes
from trainer.evaluate.sandbox.limits import Limits, Outcome
from trainer.evaluate.sandbox.run import run_task

ATTACKS = [*VERDICT, *RESOURCES, *OUTSIDE]
LIMITS = Limits(wall_seconds=60)
SHORT = Limits(wall_seconds=2)
MORE_SECONDS = 30
"""A busy machine may take so long beyond the limit."""

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the sandbox needs Linux")


@dataclass(frozen=True)
class Place:
    """What is outside, and open to everyone there."""

    folder: str
    socket: str
    abstract: str
    port: int
    pid: int

    def fill(self, code: str) -> str:
        """Put these values into an attack."""
        for item in fields(self):
            code = code.replace(f"PLACE.{item.name}", str(getattr(self, item.name)))
        return code


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="codelupe-run-") as folder, socket.socket() as network:
        Path(folder).chmod(0o777)
        (Path(folder) / "secret").write_text("secret")
        abstract = f"codelupe-{secrets.token_hex(4)}"
        with socket.socket(socket.AF_UNIX) as database, socket.socket(socket.AF_UNIX) as hidden:
            database.bind(f"{folder}/.s.PGSQL.5432")
            Path(f"{folder}/.s.PGSQL.5432").chmod(0o777)
            hidden.bind("\0" + abstract)
            network.bind(("127.0.0.1", 0))
            for server in (database, hidden, network):
                server.listen(200)
            port = network.getsockname()[1]
            yield Place(folder, f"{folder}/.s.PGSQL.5432", abstract, port, os.getpid())


def attempt(user: str, code: str, tests: str, limits: Limits = LIMITS) -> Outcome:
    outcome = as_user(user, lambda: run_task(double(tests), code, limits))
    assert isinstance(outcome, Outcome)
    return outcome


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_an_escape_fails(attack: Attack, user: str, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDBOX_SECRET", "secret")
    limits = SHORT if attack.endless else LIMITS
    outcome = attempt(user, place.fill(attack.code), attack.tests, limits)
    assert not outcome.passed
    assert re.search(attack.reason, outcome.reason), outcome
    assert outcome.seconds < limits.wall_seconds + MORE_SECONDS


@pytest.mark.parametrize("attack", [attack for attack in ATTACKS if attack.harmless], ids=lambda attack: attack.name)
def test_the_same_code_succeeds_where_nothing_protects(
    attack: Attack, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that an attack does not fail only because it is written badly."""
    monkeypatch.setenv("SANDBOX_SECRET", "secret")
    folder = tmp_path / "a" / "b" / "c"
    folder.mkdir(parents=True)
    climb = "../" * len(folder.parts)
    code = place.fill(attack.code).replace("../../..", climb)
    assert naive_pass(code, attack.tests, folder)


ORPHAN = """
import os, sys
def double(x):
    if x == 2 and not os.fork():
        os.setsid()
        if not os.fork():
            os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(1000)", "MARKER"])
        os._exit(0)
    return 2 * x
"""


@pytest.mark.parametrize("user", USERS)
def test_an_orphan_does_not_outlive_the_verdict(user: str) -> None:
    marker = secrets.token_hex(8)
    task = double("import time\nassert double(2) == 4\ntime.sleep(1)")

    def seen_and_left() -> tuple[bool, Outcome, list[int]]:
        with ThreadPoolExecutor() as threads:
            running = threads.submit(run_task, task, ORPHAN.replace("MARKER", marker), LIMITS)
            seen = until(lambda: bool(processes(marker)))
            return seen, running.result(), processes(marker)

    seen, outcome, left = as_user(user, seen_and_left)
    assert seen
    assert outcome.passed, outcome
    assert not left


@pytest.mark.parametrize("user", USERS)
def test_threads_that_never_end_end_with_the_verdict(user: str) -> None:
    code = "import threading, time\nfor _ in range(3): threading.Thread(target=time.sleep, args=(1000,)).start()\n"
    outcome = attempt(user, code + "def double(x): return 2 * x", "assert double(2) == 4")
    assert outcome.passed, outcome
    assert outcome.seconds < LIMITS.wall_seconds + MORE_SECONDS


@pytest.mark.parametrize("user", USERS)
def test_the_sandbox_dies_with_a_trainer_that_is_killed(user: str) -> None:
    marker = secrets.token_hex(8)
    code = ORPHAN.replace("MARKER", marker)

    def killed() -> bool:
        if not (child := os.fork()):
            try:
                run_task(double("import time\ndouble(2)\ntime.sleep(1000)"), code, Limits(wall_seconds=100))
            finally:
                os._exit(0)
        assert until(lambda: bool(processes(marker)))
        os.kill(child, 9)
        os.waitpid(child, 0)
        return until(lambda: not processes(marker))

    assert as_user(user, killed)


def until(condition: Callable[[], bool], seconds: float = 20) -> bool:
    """Whether the condition comes true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True
