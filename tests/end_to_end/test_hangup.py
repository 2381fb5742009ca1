"""When the terminal closes, the service and its embedded database stop cleanly."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import subprocess
import termios
from collections.abc import Callable
from pathlib import Path

import pytest
from driver import COMMAND, Codelupe, wait_for

pytestmark = pytest.mark.timeout(200)


def read_to(terminal: int, words: bytes) -> Callable[[], bool]:
    """Return a function that reads the terminal and says whether the words have appeared."""
    seen = bytearray()

    def found() -> bool:
        seen.extend(os.read(terminal, 65536))
        return words in seen

    return found


@pytest.fixture
def codelupe(tmp_path: Path):
    service = Codelupe(tmp_path / "home")
    yield service
    service.stop()


@pytest.mark.long
def test_a_service_stops_cleanly_when_its_terminal_closes(codelupe: Codelupe):
    ours, its = pty.openpty()

    def own_terminal() -> None:
        fcntl.ioctl(its, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        [*COMMAND, "up", "--no-demo"],
        stdin=its, stdout=its, stderr=its, env=codelupe.environment, cwd=codelupe.home,
        start_new_session=True, preexec_fn=own_terminal,
    )  # fmt: skip
    os.close(its)
    wait_for(read_to(ours, b"/health"), "the service to listen", 90)
    assert (codelupe.home / "postgres" / "pgdata" / "postmaster.pid").exists()
    os.close(ours)  # the kernel sends SIGHUP to the session
    assert process.wait(60) == 0
    assert not (codelupe.home / "postgres" / "pgdata" / "postmaster.pid").exists()


@pytest.mark.long
def test_a_service_under_nohup_survives_a_hangup(codelupe: Codelupe):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the child inherits it, as under nohup
    try:
        codelupe.up("--no-demo")
    finally:
        signal.signal(signal.SIGHUP, before)
    assert codelupe.service is not None
    codelupe.service.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        codelupe.service.wait(3)
    assert codelupe.health()["status"] == "healthy"
