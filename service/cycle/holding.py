"""The pause that a person asks for: `codelupe pause`, `codelupe resume`, and the buttons of the page."""

from __future__ import annotations

import time
from collections.abc import Callable

from db import holds
from db.errors import Unavailable
from db.holds import Hold
from db.pool import Pool
from db.table import CHANNEL
from service.cycle.leadership import Leadership
from service.cycle.pausing import LOOK_SECONDS
from service.cycle.upkeep import Upkeep
from service.logs import event as log
from service.web.board import Board

TRAINING_LOOK_SECONDS = 2.0
"""The time between two looks whether the run in progress should wait."""


class Holding:
    """Looks for a request to pause, and waits until it ends."""

    def __init__(self, pool: Pool, board: Board, leadership: Leadership, upkeep: Upkeep) -> None:
        self._pool, self._board, self._leadership, self._upkeep = pool, board, leadership, upkeep
        self._looked = 0.0
        self._told: Hold | None = None
        """The pause that the log has told of."""

    def asked(self) -> Hold | None:
        """Return the pause that somebody asked for, or None. The board shows it from then on."""
        found = holds.held(self._pool, self._upkeep.stream)
        self._board.update(held_since=None if found is None else found.since.timestamp())
        return found

    def stops_training(self) -> bool:
        """Whether somebody asked that the run in progress waits too."""
        found = self.asked()
        return found is not None and found.stops_training

    def stops_training_now(self) -> bool:
        """The same, asked every few moments. If the database does not answer, training goes on."""
        now = time.monotonic()
        if now - self._looked < TRAINING_LOOK_SECONDS:
            return False
        self._looked = now
        try:
            return self.stops_training()
        except Unavailable as error:
            self._upkeep.note_database_trouble(error)
            return False

    def wait(self, notified_within: Callable[[Callable[[float], bool], float], bool]) -> bool:
        """Wait for a moment, with fresh counts on the board. Returns whether the pause goes on.

        Args:
            notified_within: waits for a notification, and keeps the lease
        """
        found = self.asked()
        if found is None:
            self._told = None
            log("Resumed")
            return False
        if found != self._told:
            self._told = found
            log("On hold", since=found.since, stops_training=found.stops_training)
        self._leadership.renew()
        self._upkeep.derive_pointer()
        with self._pool.listening(CHANNEL) as notified:
            if self._upkeep.poll_due():
                self._upkeep.poll(self._leadership.lease)
            if self.asked() is not None:  # it may have ended before the listening began
                notified_within(notified, min(LOOK_SECONDS, self._upkeep.settings.check_interval_seconds))
        return True
