"""Handles requests to stop: SIGTERM, SIGINT, or the end of stdin if it is a pipe. (no torch)

The service holds the other end of the trainer's stdin. When the service dies for any reason, the pipe closes and the
training ends, too.
"""

from __future__ import annotations

import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TextIO

from trainer.errors import Stopped


class StopRequest:
    """A request to stop the run, with its reason.

    At first a request raises Stopped in the main thread, because nothing is lost before the first step. Inside
    `deferred()` it is only recorded, and the loop checks it after each step.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._deferred = 0
        self._most_seconds: float | None = None

    def listen(self, *, most_seconds: float | None = None) -> None:
        """Handle the signals, and watch stdin if it is a pipe or socket.

        Args:
            most_seconds: the process is killed this long after the end of stdin. For one of several processes, which
                may wait for another that is gone
        """
        self._most_seconds = most_seconds
        self.handle_signals()
        if _held_open(0):
            threading.Thread(target=self._watch_stdin, name="stdin", daemon=True).start()

    def handle_signals(self) -> None:
        """Handle the signals, again if a library has set handlers of its own."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def request(self, reason: str) -> None:
        """Record a request. The first reason counts."""
        self.reason = self.reason or reason

    def check(self) -> None:
        """Raises Stopped if there was a request."""
        if self.reason is not None:
            raise Stopped(self.reason)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Only record requests in this block, without raising."""
        self._deferred += 1
        try:
            yield
        finally:
            self._deferred -= 1

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.request(f"{signal.Signals(number).name} was received")
        if not self._deferred:
            self.check()

    def _watch_stdin(self) -> None:
        while os.read(0, 4096):
            pass
        self.request("stdin was closed")
        os.kill(os.getpid(), signal.SIGTERM)
        if self._most_seconds is not None:
            time.sleep(self._most_seconds)
            os.kill(os.getpid(), signal.SIGKILL)


def _held_open(descriptor: int) -> bool:
    """Whether a descriptor is a pipe or a socket: not a terminal, /dev/null, a file, or closed."""
    try:
        mode = os.fstat(descriptor).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


class PrefixedOutput:
    """A text stream that begins each line with a prefix, so that the lines of several processes can be told apart."""

    def __init__(self, stream: TextIO, prefix: str) -> None:
        self._stream = stream
        self._prefix = prefix
        self._at_start = True

    def write(self, text: str) -> int:
        """Write text in one piece, which keeps short lines of several processes whole."""
        lines = text.splitlines(keepends=True)
        begins = [self._at_start, *(True for _ in lines[1:])]
        whole = (f"{self._prefix if new else ''}{line}" for new, line in zip(begins, lines, strict=False))
        self._stream.write("".join(whole))
        if lines:
            self._at_start = lines[-1].endswith("\n")
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def write_stderr(message: str) -> None:
    """Write a message to stderr, which goes to trainer.log."""
    sys.stderr.write(message.rstrip("\n") + "\n")
    sys.stderr.flush()
