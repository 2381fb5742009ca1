"""A connection whose transactions have server-side timeouts, and a check whether the server still answers."""

from __future__ import annotations

import select
import time
from typing import Any

import psycopg2
from psycopg2 import extensions

from db.sentinel import Sentinel, WatchedConnection
from db.statements import QUERIES

LIMITS = {"statement": "300s", "lock": "30s", "idle": "600s"}
"""The limits of each transaction. The last one limits how long a stopped process keeps its locks."""
ROUND_TRIP_AFTER_SECONDS = 30.0
"""A connection that was idle for longer than this is tested with a round trip before it is used."""


class LimitedConnection(WatchedConnection):
    """A connection whose transactions have server-side timeouts. It remembers when it became idle."""

    def __init__(self, sentinel: Sentinel, dsn: str, *arguments: Any, **options: Any) -> None:
        super().__init__(dsn, *arguments, **options)
        self.idle_since = time.monotonic()
        self.given_up_before = sentinel.given_up
        """How many connections the sentinel had shut down when this one was checked out."""
        sentinel.watch(self)
        with self.cursor() as cursor:
            cursor.execute(QUERIES["backend_self"])
            if (row := cursor.fetchone()) and row[0] == self.info.backend_pid:
                self.backend = row
        self.commit()
        self.is_set_up = True

    @property
    def is_pooled(self) -> bool:
        """Whether a connection pooler is in between, so that other programs use the same sessions of the server."""
        return self.is_set_up and self.backend is None

    def limit_transaction(self, cursor: extensions.cursor) -> None:
        """Limit the transaction that begins. Never set anything for the session: behind a connection pooler, other
        programs would get it."""
        cursor.execute(QUERIES["transaction_limits"], LIMITS)

    def answers(self) -> bool:
        """Whether an idle connection still works. After ROUND_TRIP_AFTER_SECONDS, this needs a round trip."""
        if self.closed:
            return False
        poll = select.poll()  # select.select() fails on descriptors over 1023
        poll.register(self.fileno(), select.POLLIN)
        if poll.poll(0):  # an idle server sends nothing unless it closes the connection
            return False
        if time.monotonic() - self.idle_since < ROUND_TRIP_AFTER_SECONDS:
            return True
        try:
            with self.cursor() as cursor:
                cursor.execute("select 1")
            self.rollback()
        except psycopg2.Error:  # the connection does not work
            return False
        return True
