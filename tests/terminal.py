"""Runs a command in a pseudo-terminal, as a person sees it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


class Terminal:
    """A command whose stdin, stdout and stderr are one terminal."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], *, cwd: Path, columns: int = 100
    ) -> None:
        without_size = {name: value for name, value in environment.items() if name not in ("COLUMNS", "LINES")}
        self._side, other = pty.openpty()
        self.resize(columns)
        self.process = subprocess.Popen(
            command, env={**without_size, "TERM": "xterm-256color"}, cwd=cwd, stdin=other, stdout=other, stderr=other,
            start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(other)
        self.text = ""

    def resize(self, columns: int, rows: int = 30) -> None:
        """Change the size of the window."""
        fcntl.ioctl(self._side, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def press_ctrl_c(self) -> None:
        os.write(self._side, b"\x03")

    def read_until(self, is_there: Callable[[str], bool], seconds: float = 30.0) -> str:
        """Read until the text of the whole session so far is as wanted. Returns it."""
        deadline = time.monotonic() + seconds
        while not is_there(self.text):
            assert time.monotonic() < deadline, self.text[-3000:]
            if not self._read(0.2):
                assert is_there(self.text), self.text[-3000:]
        return self.text

    def end(self, seconds: float = 30.0) -> int:
        """Read to the end. Returns the exit code."""
        deadline = time.monotonic() + seconds
        try:
            while self._read(0.2):
                if time.monotonic() > deadline:
                    os.killpg(self.process.pid, signal.SIGKILL)
                    raise AssertionError(self.text[-3000:])
        finally:
            with contextlib.suppress(OSError):
                os.close(self._side)
        return self.process.wait(10)

    def _read(self, seconds: float) -> bool:
        """Read what there is. Returns False at the end."""
        ready, _, _ = select.select([self._side], [], [], seconds)
        if not ready:
            return self.process.poll() is None
        try:
            data = os.read(self._side, 65536)
        except OSError:  # the last process has closed the terminal
            return False
        self.text += data.decode(errors="replace")
        return bool(data)
