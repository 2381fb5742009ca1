"""psycopg2's pool made to wait, check and heal; `transaction()` is where its errors become db.errors.

psycopg2's own pool raises when it is exhausted, hands out dead connections, and loses a slot for ever when
the server dies inside a transaction (rolling back on return raises before the slot is given back). What waits for a
server that has gone silent is ended by a sentinel: db/sentinel.py.
"""

from __future__ import annotations

import re
import select
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal
from urllib.parse import quote, urlencode

import psycopg2
from psycopg2 import extensions, sql
from psycopg2.pool import ThreadedConnectionPool

from db.errors import DatabaseError, Misconfigured, Unavailable
from db.sentinel import Sentinel, WatchedConnection
from db.statements import QUERIES

CONNECT_TIMEOUT_SECONDS = 10
TCP_TIMEOUT_MILLISECONDS = 30_000
STATEMENT_TIMEOUT_SECONDS = 300
LOCK_TIMEOUT_SECONDS = 30
IDLE_IN_TRANSACTION_SECONDS = 600
"""A stopped process must not keep its locks for ever."""
BROKEN = 2
"""psycopg2's `closed` of a connection that was lost, not closed."""
ROUND_TRIP_AFTER_SECONDS = 30.0
"""A connection idle for longer than this is asked for an answer before it is handed out."""

Isolation = Literal["read committed", "repeatable read"]


class _Connection(WatchedConnection):
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
        self._password = _parsed(url).get("password")
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
            connection_factory=partial(_Connection, self._sentinel),
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

    def _checkout(self) -> _Connection:
        """A connection that answers: an idle one, or a new one."""
        while True:
            try:
                connection = self._connections.getconn()
            except psycopg2.pool.PoolError as error:
                raise Unavailable("the connection pool is closed") from error
            except psycopg2.Error as error:
                raise classify(error, None, secret=self._password) from error
            assert isinstance(connection, _Connection)
            connection.given_up_before = self._sentinel.given_up
            if connection.answers():
                return connection
            self._discard(connection)

    def _discard(self, connection: _Connection) -> None:
        """Roll back, close, and give the slot back, whatever state the connection is in."""
        with suppress(psycopg2.Error):  # a dead connection's transaction is over already
            if self._sentinel.given_up == connection.given_up_before:
                connection.rollback()  # closing would do, but only some milliseconds later
            else:  # another one was silent meanwhile: this one would be waited for as long
                self._sentinel.leave_behind(connection)
        if connection.closed == BROKEN:
            self._sentinel.leave_behind(connection)
        self._put_back(connection, close=True)

    def _put_back(self, connection: _Connection, *, close: bool) -> None:
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


# --- errors
# ---------------------------------------------------------------------------------------------------

_CONNECT_ADVICE = (
    (
        r"password authentication failed|no password supplied",
        "check POSTGRES_USER and POSTGRES_PASSWORD (or DATABASE_URL)",
    ),
    (r'database ".*" does not exist', "create it, or correct POSTGRES_DB (or DATABASE_URL)"),
    (r'role ".*" does not exist', "create the role, or correct POSTGRES_USER (or DATABASE_URL)"),
    (
        r"no pg_hba\.conf entry|authentication failed|permission denied for database",
        "allow this user and host in the server's pg_hba.conf",
    ),
    (r"server does not support SSL|certificate|sslmode", "correct the SSL options of DATABASE_URL"),
    (r"invalid (connection option|integer value|port|.* value)", "correct DATABASE_URL"),
)

_SQLSTATE_ADVICE = {
    "28": "check POSTGRES_USER and POSTGRES_PASSWORD (or DATABASE_URL)",
    "3D": "create the database, or correct POSTGRES_DB (or DATABASE_URL)",
    "3F": "create the schema, or correct SOURCE_TABLE",
    "42501": "grant the missing right to the database user",
    "42P01": "the table is missing: run the migrations, or correct SOURCE_TABLE",
    "42703": "the column is missing: run the migrations, or correct SOURCE_COLUMNS",
    "42": "the database does not have the tables and columns that this version expects",
}


def classify(
    error: psycopg2.Error, connection: extensions.connection | None, *, secret: str | None = None
) -> DatabaseError:
    """Turn an error of psycopg2 into ours. `connection` is None when connecting failed.

    `pgcode` is None for a shutdown in mid-query, a refused connection or a killed backend, so the
    connection's state and the error's class are asked first. While connecting there never is a code; the
    server's text has to
    do.
    """
    text = " ".join(str(error).split())
    if connection is None:
        text = text.replace(secret, "***") if secret else text
        for pattern, advice in _CONNECT_ADVICE:
            if re.search(pattern, text):
                return Misconfigured(f"cannot use the database: {text}; {advice}")
        return Unavailable(f"the database cannot be reached: {text}")
    code = error.pgcode or ""
    if isinstance(connection, WatchedConnection) and connection.given_up:
        return Unavailable(f"the connection to the database was given up: {connection.given_up}")
    # What a server says has a code. Asked for beside `closed`, as the error may be another connection's.
    lost = type(error) is psycopg2.DatabaseError and not code
    if connection.closed or lost or isinstance(error, psycopg2.InterfaceError):
        return Unavailable(f"the connection to the database was lost: {text or type(error).__name__}")
    if code == "25006":
        return Unavailable(f"the database is read-only at the moment (a standby?): {text}")
    for prefix in (code, code[:2]):
        if prefix in _SQLSTATE_ADVICE:
            return Misconfigured(f"{text}; {_SQLSTATE_ADVICE[prefix]}")
    if isinstance(error, psycopg2.OperationalError):  # timeouts, deadlocks, serialization, no memory, no disk
        return Unavailable(f"the database could not do it now: {text}")
    return DatabaseError(f"{text} (SQLSTATE {code or 'unknown'})")


# --- URLs
# -----------------------------------------------------------------------------------------------------

_SECRETS = ("password", "sslpassword")


def _parsed(url: str) -> dict[str, str]:
    """The parts of a URL. libpq's messages about a bad one repeat pieces of its password; not kept."""
    try:
        parts: dict[str, str] = extensions.parse_dsn(url)
    except psycopg2.Error:
        parts = {}
    cut_short = "@" in parts.get("host", "") + (parts.get("dbname", "") if "://" in url else "")
    if not parts or cut_short or not re.fullmatch(r"[\d,]*", parts.get("port", "")):
        raise Misconfigured(
            "the database URL cannot be read; it should look like "
            "postgresql://user:password@host:5432/database, with special characters of the password "
            "percent-encoded (@ is %40, / is %2F)"
        )
    return parts


def safe_url(url: str) -> str:
    """The database URL for people to read: its password hidden, its form (URL or key=value) kept."""
    try:
        parts = _parsed(url)
    except Misconfigured:
        return "(a database URL that cannot be read)"
    shown = {key: "***" if key in _SECRETS else value for key, value in parts.items()}
    if "://" not in url.split("=")[0]:
        return str(extensions.make_dsn(**shown))
    user, password = quote(shown.pop("user", ""), safe=""), ":***" if shown.pop("password", None) else ""
    at = "@" if user or password else ""
    host = "" if shown.get("host", "").startswith("/") else shown.pop("host", "")
    port = f":{shown.pop('port')}" if host and "port" in shown else ""
    path = quote(shown.pop("dbname", ""), safe="")
    query = f"?{urlencode(shown, safe='*/', quote_via=quote)}" if shown else ""
    return f"postgresql://{user}{password}{at}{host}{port}/{path}{query}"
