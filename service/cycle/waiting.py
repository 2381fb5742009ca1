"""Waits with heartbeats while the lease is kept: for time to pass, or for new files."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from service.cycle.leadership import Leadership
from service.web.board import Board

LISTEN_SECONDS = 0.5
"""How long one wait for a notification lasts. In between, the daemon checks whether it should stop."""
GATHERING_SECONDS = 1.0
"""New files arrive in batches, so one poll covers a second of them."""
BEAT_SECONDS = 2.0


class Waiting:
    """The waits of one daemon. Each ends early when it is asked to stop."""

    def __init__(self, stop: threading.Event, board: Board, leadership: Leadership) -> None:
        self._stop, self._board, self._leadership = stop, board, leadership

    def beat_and_renew(self) -> None:
        """Record a heartbeat, and renew the lease if it is due."""
        self._board.beat()
        self._leadership.renew()

    def sleep(self, seconds: float, *, renew: bool = True) -> None:
        """Wait for some time."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and not self._stop.wait(min(left, BEAT_SECONDS)):
            self._board.beat()
            if renew:
                self._leadership.renew()

    def notified_within(self, notified: Callable[[float], bool], seconds: float) -> bool:
        """Wait until new files are announced. Returns False if that does not happen in time."""
        return self.until(notified, seconds, lambda: False)

    def until(self, notified: Callable[[float], bool], seconds: float, reached: Callable[[], bool]) -> bool:
        """Wait until new files are announced, or `reached` is true. Returns False if neither happens in time.

        Args:
            notified: waits for an announcement for at most some seconds. An announcement may get lost
        """
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and not self._stop.is_set():
            if notified(min(left, LISTEN_SECONDS)):
                self._stop.wait(min(left, GATHERING_SECONDS))
                return True
            self.beat_and_renew()
            if reached():
                return True
        return False
