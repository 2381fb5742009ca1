"""psycopg2's pool made to wait, check and heal; `transaction()` is where its errors become db.errors.

psycopg2's own pool raises when it is exhausted, hands out dead connections, and loses a slot for ever when
the server dies inside a transaction (rolling back on return raises before the slot is given back). What waits for a
server that has gone silent is ended by a sentinel: db/sentinel.py.
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Literal

import psycopg2
from psycopg2 import extensions, sql
from psycopg2.pool import ThreadedConnectionPool

from db.classify import classify
from db.connection import LimitedConnection
from db.errors import Unavailable
from db.sentinel import Sentinel
from db.urls import parsed_url

CONNECT_TIMEOUT_SECONDS = 10
TCP_TIMEOUT_MILLISECONDS = 30_000
BROKEN = 2
"""psycopg2's `closed` of a connection that was lost, not closed."""
Isolation = Literal["read committed", "repeatable read"]


@dataclass(frozen=True, kw_only=True)
class PoolStats:
    """How busy the pool is."""

    in_use: int
    idle: int
    """Open connections that nobody uses at the moment."""
    limit: int
    waiting: int
    """Threads that wait for a connection."""


class Pool:
    """At most `max_connections` connections to one database, opened when they are needed.

    A caller waits up to `wait_seconds` for one. As many as `min_connections` stay open between uses.
    """

    def __init__(
        self,
        url: str,
        *,
        min_connections: int = 1,
        max_connections: int = 5,
        wait_seconds: float = 30.0,
        application_name: str = "codelupe",
    ) -> None:
        if not 0 <= min_connections <= max_connections or max_connections < 1:
            raise ValueError(f"a pool of {min_connections} to {max_connections} connections is not possible")
        self._password = parsed_url(url).get("password")
        self._limit = max_connections
        self._wait_seconds = wait_seconds
        self._free = threading.Condition()
        self._in_use = 0
        self._waiting = 0
        self._closed = False
        self._sentinel = Sentinel(url, application_name=f"{application_name} sentinel")
        # minconn 0 opens nothing now; it is then also the number that putconn keeps, hence the assignment.
        self._connections = ThreadedConnectionPool(
            0,
            max_connections,
            dsn=url,
            connection_factory=partial(LimitedConnection, self._sentinel),
            client_encoding="UTF8",  # psycopg2 takes the database's, which SQL_ASCII spoils
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            keepalives=1,
            keepalives_idle=30,
            keepalives_interval=10,
            keepalives_count=3,
            tcp_user_timeout=TCP_TIMEOUT_MILLISECONDS,  # what was sent and never arrived: keepalives do not look then
            application_name=application_name,
        )
        self._connections.minconn = min_connections

    @contextmanager
    def transaction(
        self, *, isolation: Isolation = "read committed", read_only: bool = False
    ) -> Iterator[extensions.cursor]:
        """One transaction: committed when the block ends, rolled back when it raises.

        Raises:
            Unavailable: try again later. After a lost connection it is unknown whether a commit arrived.
            Misconfigured: somebody has to change something first.
            DatabaseError: anything else that the server did not accept.
        """
        with self._slot():
            connection = self._checkout()
            try:
                connection.set_session(isolation_level=isolation, readonly=read_only)
                with connection.cursor() as cursor:
                    yield cursor
                connection.commit()
            except psycopg2.Error as error:
                translated = classify(error, connection)
                self._discard(connection)
                raise translated from error
            except BaseException:
                self._discard(connection)
                raise
            connection.idle_since = time.monotonic()
            self._put_back(connection, close=False)

    @contextmanager
    def listening(self, channel: str) -> Iterator[Callable[[float], bool]]:
        """A connection that hears what is notified on a channel while the block runs: call it with the seconds to wait,
        and it says whether there was anything. The connection is closed afterwards.

        Raises:
            Unavailable: it was lost.
        """
        with self._slot():
            connection = self._checkout()
            try:
                connection.set_session(autocommit=True)
                with connection.cursor() as cursor:
                    cursor.execute(sql.SQL("listen {}").format(sql.Identifier(channel)))
                yield lambda seconds: _notified(connection, seconds)
            except psycopg2.Error as error:
                raise classify(error, connection) from error
            finally:
                self._discard(connection)

    def stats(self) -> PoolStats:
        """Counts of this moment."""
        with self._free:
            return PoolStats(
                in_use=self._in_use,
                idle=len(self._connections._pool),  # type: ignore[attr-defined]  # not in the stubs
                limit=self._limit,
                waiting=self._waiting,
            )

    def close(self) -> None:
        """Close every connection; later transactions raise Unavailable."""
        with self._free:
            if self._closed:
                return
            self._closed = True
            self._free.notify_all()
        self._connections.closeall()
        self._sentinel.end()

    @contextmanager
    def _slot(self) -> Iterator[None]:
        with self._free:
            self._waiting += 1
            try:
                entered = self._free.wait_for(lambda: self._closed or self._in_use < self._limit, self._wait_seconds)
            finally:
                self._waiting -= 1
            if self._closed:
                raise Unavailable("the connection pool is closed")
            if not entered:
                raise Unavailable(
                    f"all {self._limit} database connections were in use for {self._wait_seconds:g} s; "
                    "raise DB_POOL_MAX_CONN if this happens often"
                )
            self._in_use += 1
        try:
            yield
        finally:
            with self._free:
                self._in_use -= 1
                self._free.notify()

    def _checkout(self) -> LimitedConnection:
        """A connection that answers: an idle one, or a new one."""
        while True:
            try:
                connection = self._connections.getconn()
            except psycopg2.pool.PoolError as error:
                raise Unavailable("the connection pool is closed") from error
            except psycopg2.Error as error:
                raise classify(error, None, secret=self._password) from error
            assert isinstance(connection, LimitedConnection)
            connection.given_up_before = self._sentinel.given_up
            if connection.answers():
                return connection
            self._discard(connection)

    def _discard(self, connection: LimitedConnection) -> None:
        """Roll back, close, and give the slot back, whatever state the connection is in."""
        with suppress(psycopg2.Error):  # a dead connection's transaction is over already
            if self._sentinel.given_up == connection.given_up_before:
                connection.rollback()  # closing would do, but only some milliseconds later
            else:  # another one was silent meanwhile: this one would be waited for as long
                self._sentinel.leave_behind(connection)
        if connection.closed == BROKEN:
            self._sentinel.leave_behind(connection)
        self._put_back(connection, close=True)

    def _put_back(self, connection: LimitedConnection, *, close: bool) -> None:
        try:
            self._connections.putconn(connection, close=close)
        except psycopg2.pool.PoolError:  # the pool was closed meanwhile
            connection.close()


def _notified(connection: extensions.connection, seconds: float) -> bool:
    """Wait for notifications, and forget them once heard."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    poll.poll(seconds * 1000)
    connection.poll()  # raises where the server has gone
    heard = bool(connection.notifies)
    connection.notifies.clear()
    return heard
