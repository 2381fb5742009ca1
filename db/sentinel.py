"""Ends statements that wait for a server that will not answer.

libpq waits for the answer to a statement for ever. The timers of TCP do not help if the peer accepts bytes but sends
nothing, such as a frozen server, or a proxy that has lost its connection to the server. So when a statement has waited
for PROBE_AFTER_SECONDS, a second connection probes the server. The socket of the first one is shut down if the probe
gets no answer, or if the server reports that it is not working on the statement. libpq then returns an error, as for
any lost connection. When the server can be reached again, it is told to terminate the process of the lost connection,
which may hold locks. A long statement is not interrupted while the server answers.

        statement ├──────── PROBE_AFTER_SECONDS ────────┤ no answer in ANSWER_SECONDS ┤ again ├── shut down
        server    (frozen or unreachable)

Behind a connection pooler, the server's process is unknown, and a probe may have to wait for one of the pooler's server
connections. A statement is then given up only after OVERDUE_SECONDS without an answer to any probe, or if the pooler
itself accepts no connection.

Not covered: a DNS lookup that hangs while connecting. The probe itself connects to an IP address.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
import weakref
from contextlib import suppress
from datetime import datetime
from typing import Any

import psycopg2
from psycopg2 import extensions

from db.statements import QUERIES

PROBE_AFTER_SECONDS = 15.0
CHECK_SECONDS = 1.0
"""The time between two checks of the connections."""
ANSWER_SECONDS = 5.0
"""How long a probe waits without receiving anything before the server counts as silent."""
PROBE_SECONDS = 20.0
"""The time limit for a whole probe, even if the server sends its answer slowly."""
OVERDUE_SECONDS = 330.0
"""Longer than the statement timeout of the pool. A server process has lost its client if it waits for it in a statement
that is older than this."""
TERMINATE_SECONDS = 600.0
"""How long the sentinel tries to terminate an orphaned process of the server. After this time the server ends an idle
transaction by itself."""


class WatchedConnection(extensions.connection):
    """A connection on which another thread can detect and end a wait."""

    def __init__(self, dsn: str, *arguments: Any, **options: Any) -> None:
        self._closing = threading.Lock()  # closing frees memory that the other thread reads
        self.given_up: str | None = None
        """Why the connection was shut down. None if it was not."""
        super().__init__(dsn, *arguments, **options)
        try:
            self._socket_number = os.fstat(self.fileno()).st_ino
            self.address = _address(self)
            """The address of the server, as options for a second connection."""
        except OSError as error:
            raise psycopg2.OperationalError(f"the connection broke at once: {error}") from error
        self.is_set_up = False
        """Whether the statements that set up the connection were answered. `backend` is unknown before that."""
        self.backend: tuple[int, datetime] | None = None
        """The id and start time of the server process. None before the set-up, or with a connection pooler."""

    def close(self) -> None:
        with self._closing:
            if self._active():  # another thread executes a statement, and closing would wait for it
                self._shut_down("it was closed while a statement was running")
            super().close()

    def waits(self) -> bool:
        """Whether a statement is being executed."""
        with self._closing:
            return self._active()

    def give_up(self, reason: str) -> None:
        """Shut the socket down, so that the waiting thread gets an error. libpq then closes the connection."""
        with self._closing:
            if not self.closed:
                self._shut_down(reason)

    def _active(self) -> bool:
        active = extensions.TRANSACTION_STATUS_ACTIVE
        return not self.closed and self.get_transaction_status() == active

    def _shut_down(self, reason: str) -> None:
        self.given_up = reason
        try:
            same = os.dup(self.fileno())
        except (OSError, psycopg2.InterfaceError):  # already closed
            return
        try:
            if os.fstat(same).st_ino != self._socket_number:  # it was closed just now, and another file has its number
                return
            with socket.socket(fileno=os.dup(same)) as shared, suppress(OSError):  # the peer was faster
                shared.shutdown(socket.SHUT_RDWR)
        finally:
            os.close(same)


def _address(connection: extensions.connection) -> dict[str, Any]:
    """Return host, port and IP address of the server, so that a second connection needs no DNS lookup."""
    address: dict[str, Any] = {"host": connection.info.host, "port": connection.info.port}
    with socket.socket(fileno=os.dup(connection.fileno())) as same:
        if same.family in (socket.AF_INET, socket.AF_INET6):
            address["hostaddr"] = same.getpeername()[0]
    return address


class Sentinel:
    """Watches the open connections of one pool, in a thread that runs while there are any."""

    def __init__(self, url: str, **options: Any) -> None:
        self._url, self._options = url, options
        self._lock = threading.Lock()
        self._connections: weakref.WeakSet[WatchedConnection] = weakref.WeakSet()
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()
        self.given_up = 0
        """How many connections have been shut down so far."""
        self._orphans: dict[tuple[int, datetime], tuple[dict[str, Any], float]] = {}
        """Processes of the server to terminate, with the server's address and the time when the sentinel gives up."""

    def watch(self, connection: WatchedConnection) -> None:
        """Watch a connection until it is closed."""
        with self._lock:
            self._connections.add(connection)
            self._start()

    def terminate_later(self, connection: WatchedConnection) -> None:
        """Terminate the server's process of a broken connection as soon as the server can be reached.

        The server may not have noticed that the connection broke. It would then keep the transaction and its locks.
        """
        if connection.backend is not None:
            with self._lock:
                until = time.monotonic() + TERMINATE_SECONDS
                self._orphans[connection.backend] = (connection.address, until)
                self._start()

    def _start(self) -> None:
        if self._thread is None and not self._ended.is_set():
            self._thread = threading.Thread(target=self._run, name="database sentinel", daemon=True)
            self._thread.start()

    def end(self) -> None:
        """Stop watching. Returns when the thread has ended."""
        self._ended.set()
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        since: weakref.WeakKeyDictionary[WatchedConnection, float] = weakref.WeakKeyDictionary()
        probed: weakref.WeakKeyDictionary[WatchedConnection, float] = weakref.WeakKeyDictionary()
        try:
            while not self._ended.wait(CHECK_SECONDS) and self._is_needed():
                for connection in self._open():
                    now = time.monotonic()
                    if not connection.waits():
                        since.pop(connection, None)
                        probed.pop(connection, None)
                    elif now - probed.setdefault(connection, since.setdefault(connection, now)) >= PROBE_AFTER_SECONDS:
                        self._probe(connection, now - since[connection])
                        probed[connection] = time.monotonic()
                    del connection  # a reference in this thread would keep it open
                self._terminate_orphans()
        finally:
            with self._lock:
                if self._thread is threading.current_thread():
                    self._thread = None

    def _is_needed(self) -> bool:
        """Whether there is anything to watch. If not, the thread ends, and the next connection starts another one."""
        with self._lock:
            if self._orphans or any(not connection.closed for connection in self._connections):
                return True
            self._thread = None
            return False

    def _open(self) -> list[WatchedConnection]:
        with self._lock:
            return [connection for connection in self._connections if not connection.closed]

    def _probe(self, connection: WatchedConnection, waited_seconds: float) -> None:
        """Shut the connection down if two probes fail. One is not enough: if this process was stopped for a while, the
        answer may have arrived, but may not have been read yet."""
        for _ in range(2):
            reason = self._failure(connection, waited_seconds)
            if reason is None or self._ended.wait(CHECK_SECONDS) or not connection.waits():
                return
        assert reason is not None
        self.given_up += 1
        connection.give_up(reason)

    def _terminate_orphans(self) -> None:
        with self._lock:
            orphans = list(self._orphans.items())
        for (pid, started), (address, until) in orphans:
            try:
                with _Probe(self._url, self._ended, {**self._options, **address}) as probe:
                    probe.value(QUERIES["backend_end"], {"pid": pid, "started": started})
            except (_NoAnswer, psycopg2.OperationalError):
                if time.monotonic() < until:
                    return  # not reachable yet
            with self._lock:
                del self._orphans[pid, started]

    def reaches(self, connection: WatchedConnection) -> bool:
        """Whether the server of an open connection answers a second one."""
        try:
            with _Probe(self._url, self._ended, {**self._options, **connection.address}) as probe:
                return bool(probe.value("select true"))
        except (_NoAnswer, psycopg2.Error):
            return False

    def _failure(self, connection: WatchedConnection, waited_seconds: float) -> str | None:
        """Return why the statement will get no answer, or None if it may get one."""
        waiting = f"a statement has waited for more than {PROBE_AFTER_SECONDS:g} s"
        try:
            with _Probe(self._url, self._ended, {**self._options, **connection.address}) as probe:
                if connection.backend is None and connection.is_set_up:
                    return self._failure_behind_pooler(probe, waited_seconds)
                if connection.backend is None:
                    probe.value("select true")
                    return f"{waiting}, but the server answers a second connection"
                pid, started = connection.backend
                limits = {"idle": PROBE_AFTER_SECONDS, "overdue": OVERDUE_SECONDS}
                if probe.value(QUERIES["backend_is_busy"], {"pid": pid, "started": started, **limits}):
                    return None
                return f"{waiting}, but the server is not executing it: the statement or its answer was lost"
        except _NoAnswer:
            return f"{waiting}, and the server does not answer a second connection"
        except psycopg2.Error as error:
            if ":  " in str(error):  # a message from the server (`FATAL:  too many clients`), in any language
                return None
            return f"{waiting}, and a second connection to the server fails"

    def _failure_behind_pooler(self, probe: _Probe, waited_seconds: float) -> str | None:
        probe.connect()
        try:
            probe.value("select true")
        except _NoAnswer:
            if waited_seconds >= OVERDUE_SECONDS:
                return f"a statement has waited for {waited_seconds:.0f} s, and no server behind the pooler answers"
        return None


class _NoAnswer(Exception):
    """The server did not answer in time."""


class _Probe:
    """A connection for one statement, with a time limit. It is asynchronous, so nothing waits in libpq."""

    def __init__(self, url: str, ended: threading.Event, options: dict[str, Any]) -> None:
        self._ended, self._deadline = ended, time.monotonic() + PROBE_SECONDS
        self._connection = psycopg2.connect(url, async_=1, **options)

    def __enter__(self) -> _Probe:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def connect(self) -> None:
        """Wait until the connection is open. Raises like `value`."""
        self._wait()

    def value(self, statement: str, parameters: dict[str, Any] | None = None) -> Any:
        """Execute a statement, and return its only value.

        Raises:
            _NoAnswer: the server did not answer in time.
            psycopg2.Error: the connection or the statement failed.
        """
        self._wait()
        with self._connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            self._wait()
            row = cursor.fetchone()
        assert row is not None
        return row[0]

    def _wait(self) -> None:
        events = {extensions.POLL_READ: select.POLLIN, extensions.POLL_WRITE: select.POLLOUT}
        while (state := self._connection.poll()) != extensions.POLL_OK:
            poll = select.poll()
            poll.register(self._connection.fileno(), events[state])
            silent_from = time.monotonic()
            while not poll.poll(100):
                now = time.monotonic()
                if self._ended.is_set() or now - silent_from > ANSWER_SECONDS:
                    raise _NoAnswer
            if time.monotonic() > self._deadline:
                raise _NoAnswer
