"""The daemon's pauses: how long they last, and what ends them before their time."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import datetime

from db import adapters, streams
from db.pool import Pool
from db.table import CHANNEL
from service.cycle.leadership import Leadership
from service.cycle.upkeep import Pause, Upkeep
from service.logs import event as log
from service.web.board import Board

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 30.0, 3600.0
"""A pause lasts twice as long as the one before, until a training succeeds."""
REQUESTED = "a run was requested"
LOOK_SECONDS = 5.0
"""The longest time between two looks whether the pause can end."""
WRONG_SETTING = frozenset({"settings", "samples"})
"""Causes for which nearly all rows would be rejected: by the claim, or by the trainer."""
ENDED_BY_FILES = frozenset({"held_out", *WRONG_SETTING})
"""Causes that more files can end. Such a pause also listens for notifications of new files."""
NOT_ENDED_BY_TIME = frozenset({"samples"})
"""Causes for which another try takes a run. Another claim costs little, and finds rows that were corrected."""


class Pausing:
    """The pauses of one daemon, one after the other."""

    def __init__(self, pool: Pool, board: Board, leadership: Leadership, upkeep: Upkeep) -> None:
        self._pool, self._board, self._leadership, self._upkeep = pool, board, leadership, upkeep
        self.count = 0
        """How many pauses there were since the last training that succeeded."""
        self.rows: int | None = None
        """The pending rows that led to the last claim. More rows can end the pause after it."""
        self.asked: datetime | None = None
        """The last request for a run before that claim. A later one ends the pause."""
        self.is_rejecting_all = False
        """Whether somebody asked for a run although nearly all rows would be rejected because of one setting."""
        self.problem: str | None = None
        """Why the service paused last."""
        self._cause = ""

    @property
    def seconds(self) -> float:
        """How long the pause lasts at most."""
        if self._cause in NOT_ENDED_BY_TIME:
            return math.inf
        return min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** max(0, self.count - 1))

    def begin(self, cause: str, reason: str, *, once: bool) -> None:
        """Say on the board and in the log why the service pauses. With `once` it stops instead."""
        self.count += 1
        self._cause, self.problem = cause, reason
        self._board.trouble(cause, reason)
        seconds = None if once or math.isinf(self.seconds) else self.seconds
        log("Paused", level=logging.ERROR, cause=cause, reason=reason, at_most_seconds=seconds)

    def wait(
        self,
        stop: threading.Event,
        sleep: Callable[[float], None],
        notified_within: Callable[[Callable[[float], bool], float], bool],
    ) -> None:
        """Wait until the pause is over, or something ends it early.

        Args:
            sleep: waits, and keeps the lease
            notified_within: waits for a notification of new files, and keeps the lease
        """
        deadline = time.monotonic() + self.seconds
        by_files = self._cause in ENDED_BY_FILES
        with self._pool.listening(CHANNEL) if by_files else nullcontext() as notified:
            ending = _Ending(self._pool, self._leadership, self._upkeep, self._cause, self.rows, self.asked)
            while (left := deadline - time.monotonic()) > 0 and not stop.is_set():
                ended = ending.reached()
                if ended is None and notified is None:
                    sleep(min(LOOK_SECONDS, left))
                elif ended is None and notified is not None:
                    seconds = min(LOOK_SECONDS, self._upkeep.settings.check_interval_seconds, left)
                    ended = "new files were announced" if notified_within(notified, seconds) else None
                if ended is not None:
                    requested = ending.is_requested()  # it is announced like files, and often comes with some
                    log("Pause ended early", reason=REQUESTED if requested else ended)
                    self.is_rejecting_all = self._cause in WRONG_SETTING and requested
                    return


class _Ending:
    """Looks whether a pause can end."""

    def __init__(
        self,
        pool: Pool,
        leadership: Leadership,
        upkeep: Upkeep,
        cause: str,
        rows: int | None,
        asked: datetime | None,
    ) -> None:
        self._pool, self._leadership, self._upkeep, self._cause, self._rows = pool, leadership, upkeep, cause, rows
        self._asked = asked
        self._current = adapters.current(pool, upkeep.stream)
        self._polled = False

    def reached(self) -> str | None:
        """Return what ended the pause, or None."""
        if self.is_requested():
            return REQUESTED
        if adapters.current(self._pool, self._upkeep.stream) != self._current:
            return "another version is current"
        if self._cause == "disk" and self._has_space():
            return "there is enough space"
        if self._cause in ENDED_BY_FILES and self._has_more_rows():
            return "there are new files"
        return None

    def is_requested(self) -> bool:
        """Whether somebody asked for a run since the claim. Earlier requests led to the pause."""
        return streams.training_requested(self._pool, self._upkeep.stream) not in (None, self._asked)

    def _has_space(self) -> bool:
        try:
            self._upkeep.check_disk()
        except Pause:
            return False
        return True

    def _has_more_rows(self) -> bool:
        """Count the newest rows at each poll, and older ones in between. A producer need not notify."""
        if self._polled and not self._upkeep.poll_due():
            found = self._upkeep.sweep(self._leadership.lease)
        else:
            found, self._polled = self._upkeep.poll(self._leadership.lease), True
        if found is None:
            return False
        if self._rows is None:
            self._rows = found.rows
        return found.rows > self._rows
