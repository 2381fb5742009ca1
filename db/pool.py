"""A connection pool that waits for a free connection, tests connections before use and recovers from broken ones.

It wraps psycopg2's pool, which raises when it is exhausted, hands out dead connections, and loses a slot for ever when
the server dies inside a transaction (the rollback on return raises before the slot is released). `transaction()` also
turns psycopg2's errors into those of db.errors. db/sentinel.py ends waits for a server that does not answer.
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
"""The value of psycopg2's `closed` for a connection that was lost, rather than closed by us."""
Isolation = Literal["read committed", "repeatable read"]


@dataclass(frozen=True, kw_only=True)
class PoolStats:
    """The usage of the pool."""

    in_use: int
    idle: int
    """Open connections that are not in use."""
    limit: int
    waiting: int
    """The number of threads that wait for a connection."""


class Pool:
    """A pool of up to `max_connections` connections to one database. Connections are opened when they are needed.

    A caller waits up to `wait_seconds` for a connection. Up to `min_connections` stay open between uses.
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
        # A minconn of 0 opens no connection now. putconn keeps `minconn` connections open, so it is set below.
        self._connections = ThreadedConnectionPool(
            0,
            max_connections,
            dsn=url,
            connection_factory=partial(LimitedConnection, self._sentinel),
            client_encoding="UTF8",  # the default is the database's encoding, which may be SQL_ASCII
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            keepalives=1,
            keepalives_idle=30,
            keepalives_interval=10,
            keepalives_count=3,
            tcp_user_timeout=TCP_TIMEOUT_MILLISECONDS,  # keepalives do not cover unacknowledged data
            application_name=application_name,
        )
        self._connections.minconn = min_connections

    @contextmanager
    def transaction(
        self, *, isolation: Isolation = "read committed", read_only: bool = False
    ) -> Iterator[extensions.cursor]:
        """Run one transaction. It is committed when the block ends, and rolled back if the block raises.

        Raises:
            Unavailable: try again later. If the connection was lost during the commit, the commit may have succeeded.
            Misconfigured: the settings or the database must be corrected first.
            DatabaseError: the server reported any other error.
        """
        with self._slot():
            connection = self._checkout()
            try:
                connection.set_session(isolation_level=isolation, readonly=read_only)
                with connection.cursor() as cursor:
                    connection.limit_transaction(cursor)
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
        """Listen on a channel while the block runs. The connection is closed afterwards.

        Behind a connection pooler this does not listen, because the server's session would go on listening for others.

        Yields:
            a function that waits up to the given seconds, and returns whether there was a notification

        Raises:
            Unavailable: the connection was lost.
        """
        if self.is_pooled():
            yield _not_notified
            return
        with self._slot():
            connection = self._checkout()
            try:
                with connection.cursor() as cursor:
                    cursor.execute(sql.SQL("listen {}").format(sql.Identifier(channel)))
                connection.commit()
                yield lambda seconds: _notified(connection, seconds)
            except psycopg2.Error as error:
                raise classify(error, connection) from error
            finally:
                self._discard(connection)

    def is_pooled(self) -> bool:
        """Whether a connection pooler is between this program and the server. Connects if no connection is open.

        Raises:
            Unavailable: the server cannot be reached.
        """
        with self._slot():
            connection = self._checkout()
            pooled = connection.is_pooled
            self._put_back(connection, close=False)
        return pooled

    def serves_two(self) -> bool:
        """Whether the server answers a second connection while a transaction of the first one is open.

        A connection pooler with one server connection lets the second one wait. A claim needs both.
        """
        with self.transaction(read_only=True) as cursor:
            assert isinstance(cursor.connection, LimitedConnection)
            return self._sentinel.reaches(cursor.connection)

    def stats(self) -> PoolStats:
        """Return the current usage."""
        with self._free:
            return PoolStats(
                in_use=self._in_use,
                idle=len(self._connections._pool),  # type: ignore[attr-defined]  # not in the stubs
                limit=self._limit,
                waiting=self._waiting,
            )

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def close(self) -> None:
        """Close every connection. Later transactions raise Unavailable."""
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
                    f"all {self._limit} database connections were in use for {self._wait_seconds:g} s. "
                    "Raise DB_POOL_MAX_CONN if this happens often"
                )
            self._in_use += 1
        try:
            yield
        finally:
            with self._free:
                self._in_use -= 1
                self._free.notify()

    def _checkout(self) -> LimitedConnection:
        """Return an idle connection that still works, or a new one."""
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
        """Roll back and close a connection in any state, and return it to psycopg2's pool."""
        with suppress(psycopg2.Error):  # the transaction of a dead connection is already over
            if self._sentinel.given_up == connection.given_up_before:
                connection.rollback()  # closing alone would also end the transaction, but some milliseconds later
            else:  # another connection got no answer, so a rollback here may have to wait as long
                self._sentinel.terminate_later(connection)
        if connection.closed == BROKEN:
            self._sentinel.terminate_later(connection)
        self._put_back(connection, close=True)

    def _put_back(self, connection: LimitedConnection, *, close: bool) -> None:
        try:
            self._connections.putconn(connection, close=close)
        except psycopg2.pool.PoolError:  # the pool has been closed
            connection.close()


def _not_notified(seconds: float) -> bool:
    """Wait as long as `_notified` would, without notifications."""
    time.sleep(max(0.0, seconds))
    return False


def _notified(connection: extensions.connection, seconds: float) -> bool:
    """Wait for notifications, and return whether there were any. Clears them."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    poll.poll(seconds * 1000)
    connection.poll()  # raises if the connection was lost
    notified = bool(connection.notifies)
    connection.notifies.clear()
    return notified
