"""Ends the wait for an answer that will not come.

libpq waits for the answer to a statement for ever, and TCP's own timers are content with a peer that accepts bytes and
says nothing: a frozen server, a proxy that has lost its other side. So while a statement waits for long, a second
connection asks. Where that gets no answer, or the server says that it has nothing to do for the first one, the
first one's socket is shut down: libpq returns an error, as for any lost connection. A server that comes back is told
to end what it kept for it, locks among it. A long statement of a server that answers is left alone.

        statement ├──────── ASK_AFTER_SECONDS ────────┤ no answer in ANSWER_SECONDS ┤ again ├── shut down
        server    (frozen, or out of reach)

Not covered: a name that is looked up for ever when connecting (the question itself goes to an address).
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

ASK_AFTER_SECONDS = 15.0
LOOK_SECONDS = 1.0
ANSWER_SECONDS = 5.0
"""The longest silence of a server that answers."""
WHOLE_SECONDS = 20.0
"""The longest that asking takes, however slowly the answer drips."""
OVERDUE_SECONDS = 330.0
"""More than a statement may take by the pool's own limit: one that reads or writes to us for longer talks to nobody."""
LEFT_BEHIND_SECONDS = 600.0
"""After which the server ends a forgotten transaction by itself."""


class WatchedConnection(extensions.connection):
    """A connection whose waits another thread can see and end."""

    def __init__(self, dsn: str, *arguments: Any, **options: Any) -> None:
        self._closing = threading.Lock()  # closing frees what the other thread looks at
        self.given_up: str | None = None
        """Why the connection was shut down; None where it was not."""
        super().__init__(dsn, *arguments, **options)
        try:
            self._socket_number = os.fstat(self.fileno()).st_ino
            self.address = _address(self)
            """Where the server is, as options for a second connection."""
        except OSError as error:
            raise psycopg2.OperationalError(f"the connection broke at once: {error}") from error
        self.greeted = False
        """Whether the first statements were answered, and `backend` is known: they are no work for a server."""
        self.backend: tuple[int, datetime] | None = None
        """The server's process, by its id and its start; None until greeted, and where a pooler stands between."""

    def close(self) -> None:
        with self._closing:
            if self._active():  # by another thread, which would be waited for
                self._shut_down("it was closed meanwhile")
            super().close()

    def waits(self) -> bool:
        """Whether a statement is on its way at the moment."""
        with self._closing:
            return self._active()

    def give_up(self, reason: str) -> None:
        """Shut the socket down, so that whoever waits on it gets an error. libpq closes it then."""
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
        except (OSError, psycopg2.InterfaceError):  # closed already, which was the aim
            return
        try:
            if os.fstat(same).st_ino != self._socket_number:  # closed this moment, and the number is another file's
                return
            with socket.socket(fileno=os.dup(same)) as shared, suppress(OSError):  # the other side was faster
                shared.shutdown(socket.SHUT_RDWR)
        finally:
            os.close(same)


def _address(connection: extensions.connection) -> dict[str, Any]:
    """Host and port, with the address that was found for it: no name is looked up again."""
    address: dict[str, Any] = {"host": connection.info.host, "port": connection.info.port}
    with socket.socket(fileno=os.dup(connection.fileno())) as same:
        if same.family in (socket.AF_INET, socket.AF_INET6):
            address["hostaddr"] = same.getpeername()[0]
    return address


class Sentinel:
    """Watches the open connections of one pool, in a thread that lives as long as there are any."""

    def __init__(self, url: str, **options: Any) -> None:
        self._url, self._options = url, options
        self._lock = threading.Lock()
        self._connections: weakref.WeakSet[WatchedConnection] = weakref.WeakSet()
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()
        self.given_up = 0
        """How many connections so far."""
        self._left_behind: dict[tuple[int, datetime], tuple[dict[str, Any], float]] = {}
        """Processes of the server that still have to hear that nobody waits for them, and until when they are told."""

    def watch(self, connection: WatchedConnection) -> None:
        """Watch a connection until it is closed."""
        with self._lock:
            self._connections.add(connection)
            self._start()

    def leave_behind(self, connection: WatchedConnection) -> None:
        """A connection broke. The server may not have noticed: it is told once it can be reached, for else it keeps
        the transaction with its locks."""
        if connection.backend is not None:
            with self._lock:
                until = time.monotonic() + LEFT_BEHIND_SECONDS
                self._left_behind[connection.backend] = (connection.address, until)
                self._start()

    def _start(self) -> None:
        if self._thread is None and not self._ended.is_set():
            self._thread = threading.Thread(target=self._run, name="database sentinel", daemon=True)
            self._thread.start()

    def end(self) -> None:
        """Stop watching; returns when the thread has ended."""
        self._ended.set()
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        since: weakref.WeakKeyDictionary[WatchedConnection, float] = weakref.WeakKeyDictionary()
        try:
            while not self._ended.wait(LOOK_SECONDS) and self._is_needed():
                for connection in self._open():
                    if not connection.waits():
                        since.pop(connection, None)
                    elif time.monotonic() - since.setdefault(connection, time.monotonic()) >= ASK_AFTER_SECONDS:
                        del since[connection]
                        self._ask(connection)
                    del connection  # the thread must not be what keeps it open
                self._end_left_behind()
        finally:
            with self._lock:
                if self._thread is threading.current_thread():
                    self._thread = None

    def _is_needed(self) -> bool:
        """Whether there is anything to watch; the next connection starts another thread otherwise."""
        with self._lock:
            if self._left_behind or any(not connection.closed for connection in self._connections):
                return True
            self._thread = None
            return False

    def _open(self) -> list[WatchedConnection]:
        with self._lock:
            return [connection for connection in self._connections if not connection.closed]

    def _ask(self, connection: WatchedConnection) -> None:
        """Twice if need be: the answer may have come while this process was stopped, and not be read yet."""
        for _ in range(2):
            reason = self._trouble(connection)
            if reason is None or self._ended.wait(LOOK_SECONDS) or not connection.waits():
                return
        assert reason is not None
        self.given_up += 1
        connection.give_up(reason)

    def _end_left_behind(self) -> None:
        with self._lock:
            left_behind = list(self._left_behind.items())
        for (pid, started), (address, until) in left_behind:
            try:
                with _Question(self._url, self._ended, {**self._options, **address}) as question:
                    question.ask(QUERIES["backend_end"], {"pid": pid, "started": started})
            except (_NoAnswer, psycopg2.OperationalError):
                if time.monotonic() < until:
                    return  # not yet
            with self._lock:
                del self._left_behind[pid, started]

    def _trouble(self, connection: WatchedConnection) -> str | None:
        """Why the answer will not come; None where it may."""
        waiting = f"a statement has waited for more than {ASK_AFTER_SECONDS:g} s"
        try:
            with _Question(self._url, self._ended, {**self._options, **connection.address}) as question:
                if connection.backend is None:
                    question.ask("select true")
                    return None if connection.greeted else f"{waiting}, while the server answers a second connection"
                pid, started = connection.backend
                limits = {"idle": ASK_AFTER_SECONDS, "overdue": OVERDUE_SECONDS}
                if question.ask(QUERIES["backend_is_busy"], {"pid": pid, "started": started, **limits}):
                    return None
                return f"{waiting}, and the server is not at it any more: question or answer were lost"
        except _NoAnswer:
            return f"{waiting}, and the server does not answer a second connection"
        except psycopg2.Error as error:
            if ":  " in str(error):  # the server's own words (`FATAL:  too many clients`), in whatever language
                return None
            return f"{waiting}, and a second connection fails"


class _NoAnswer(Exception):
    """Nothing was heard for too long."""


class _Question:
    """A connection for one question, bounded as a whole. psycopg2's asynchronous mode: nothing here waits in libpq."""

    def __init__(self, url: str, ended: threading.Event, options: dict[str, Any]) -> None:
        self._ended, self._deadline = ended, time.monotonic() + WHOLE_SECONDS
        self._connection = psycopg2.connect(url, async_=1, **options)

    def __enter__(self) -> _Question:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def ask(self, statement: str, parameters: dict[str, Any] | None = None) -> Any:
        """The one value that a statement gives.

        Raises:
            _NoAnswer
            psycopg2.Error
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
