"""A connection that limits its own statements, and can say whether it still answers."""

from __future__ import annotations

import select
import time
from typing import Any

import psycopg2

from db.sentinel import Sentinel, WatchedConnection
from db.statements import QUERIES

STATEMENT_TIMEOUT_SECONDS = 300
LOCK_TIMEOUT_SECONDS = 30
IDLE_IN_TRANSACTION_SECONDS = 600
"""A stopped process must not keep its locks for ever."""
ROUND_TRIP_AFTER_SECONDS = 30.0
"""A connection idle for longer than this is asked for an answer before it is handed out."""


class LimitedConnection(WatchedConnection):
    """A connection that limits its own statements and knows since when it has been idle."""

    def __init__(self, sentinel: Sentinel, dsn: str, *arguments: Any, **options: Any) -> None:
        super().__init__(dsn, *arguments, **options)
        self.idle_since = time.monotonic()
        self.given_up_before = sentinel.given_up
        """How many connections the sentinel had given up when this one was handed out."""
        sentinel.watch(self)
        with self.cursor() as cursor:
            cursor.execute(
                "select set_config('statement_timeout', %s, false), set_config('lock_timeout', %s, false), "
                "set_config('idle_in_transaction_session_timeout', %s, false)",
                [
                    f"{seconds}s"
                    for seconds in (
                        STATEMENT_TIMEOUT_SECONDS,
                        LOCK_TIMEOUT_SECONDS,
                        IDLE_IN_TRANSACTION_SECONDS,
                    )
                ],
            )
            cursor.execute(QUERIES["backend_self"])
            if (row := cursor.fetchone()) and row[0] == self.info.backend_pid:
                self.backend = row
        self.commit()
        self.greeted = True

    def answers(self) -> bool:
        """Whether an idle connection is good: nothing to read on it, and after a while a round trip."""
        if self.closed:
            return False
        poll = select.poll()  # select.select() fails on descriptors over 1023
        poll.register(self.fileno(), select.POLLIN)
        if poll.poll(0):  # an idle server says nothing, so this is its goodbye
            return False
        if time.monotonic() - self.idle_since < ROUND_TRIP_AFTER_SECONDS:
            return True
        try:
            with self.cursor() as cursor:
                cursor.execute("select 1")
            self.rollback()
        except psycopg2.Error:  # the answer is in the name of this method
            return False
        return True
