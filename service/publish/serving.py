"""Keeps the vLLM server on the current adapter by reconciling it every few seconds.

It has its own thread: loading takes a minute, and a slow or unreachable server must not block the main loop.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.logs import event as log
from service.publish.vllm import Vllm, VllmError, VllmUnavailable
from service.settings.home import Home
from service.web.board import Board, Snapshot
from service.web.state import State

ALIAS = "codelupe:latest"
"""The model name that editors use."""
PREFIX = "codelupe-v"
POLL_SECONDS = 3.0
FIRST_DELAY_SECONDS = 5.0
LONGEST_DELAY_SECONDS = 300.0
LONGEST_ABSENCE_SECONDS = 15.0
"""The longest delay for an unreachable server. It is short because a request is cheap and editors are waiting."""
CAUSE = "serving"


def version_name(version: int) -> str:
    """Return an adapter's own model name."""
    return f"{PREFIX}{version:06d}"


@contextmanager
def serving(url: str, api_key: str | None, home: Home, board: Board) -> Iterator[None]:
    """Follow the current adapter while the block runs. Afterwards vLLM keeps serving its last adapter."""
    stop = threading.Event()
    follower = Follower(Vllm(url, api_key), home, board)
    thread = threading.Thread(target=follower.run, args=(stop,), name="serving", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(5)  # do not wait longer: a pending call has its own deadline


class Follower:
    """Makes one vLLM server serve the current adapter on the board."""

    def __init__(self, server: Vllm, home: Home, board: Board, *, poll_seconds: float = POLL_SECONDS) -> None:
        self._server, self._home, self._board = server, home, board
        self._poll_seconds = poll_seconds
        self._failures = 0
        self._retry_at = 0.0
        self._tried: int | None = None
        self._reason: str | None = None
        self._last_good: int | None = None
        """The version that the alias last pointed to."""

    def run(self, stop: threading.Event) -> None:
        """Poll every few seconds until `stop` is set."""
        try:
            while not stop.is_set():
                self.poll(self._board.read())
                stop.wait(self._poll_seconds)
        finally:
            if not stop.is_set():  # a bug: the traceback is on stderr, and /health reports it too
                self._board.trouble(CAUSE, "serving the current adapter stopped with an error. Restart the service")
            self._server.close()

    def poll(self, snapshot: Snapshot) -> None:
        """Reconcile once, unless the current version is unknown or the last failure is too recent."""
        if not snapshot.current_known or snapshot.state == State.STANDBY:
            return  # another service leads and decides what is current
        wanted = snapshot.current_version
        if wanted != self._tried or time.monotonic() >= self._retry_at:
            self._reconcile(wanted)
        self._show(self._served_version())

    def _reconcile(self, wanted: int | None) -> None:
        self._failures = self._failures if wanted == self._tried else 0
        self._tried = wanted
        try:
            reconcile(self._server, self._home, wanted)
        except VllmError as error:
            absent = isinstance(error, VllmUnavailable)
            self._failed(wanted, str(error), LONGEST_ABSENCE_SECONDS if absent else LONGEST_DELAY_SECONDS)
        else:
            self._failures, self._retry_at, self._reason, self._last_good = 0, 0.0, None, wanted
            self._board.clear(CAUSE)

    def _failed(self, wanted: int | None, reason: str, longest_seconds: float) -> None:
        self._retry_at = time.monotonic() + min(longest_seconds, FIRST_DELAY_SECONDS * 2.0 ** min(self._failures, 10))
        self._failures += 1
        what = f"version {wanted} is not served" if wanted is not None else "the adapters are still loaded"
        self._board.trouble(CAUSE, f"{what}: {reason}")
        if reason != self._reason:
            log("Adapter not served", level=logging.WARNING, version=wanted, reason=reason)
        self._reason = reason

    def _served_version(self) -> int | None:
        """Return the version that editors reach now.

        If vLLM was restarted and the current version cannot be served, load the last good one again.
        """
        try:
            served = served_version(self._server, self._home)
            if served is None and self._last_good is not None and self._tried is not None:
                self._server.load(ALIAS, str(self._home.adapter(self._last_good)))
                return self._last_good
        except VllmError:  # reconciling reports it, now or at the next poll
            return None
        self._last_good = served
        return served

    def _show(self, served: int | None) -> None:
        """Update the board, and log an event if the version changed."""
        before = self._board.read().served_version
        if served != before:
            log(
                "Serving adapter" if served is not None else "Serving no adapter",
                version=served,
                before=before,
                model=ALIAS,
            )
            self._board.note(served_version=served)


def served_version(server: Vllm, home: Home) -> int | None:
    """Return the version behind the alias, or None.

    Raises:
        VllmError: the server cannot be asked.
    """
    folder = Path(server.adapters().get(ALIAS, ""))
    number = folder.name.removeprefix("v")
    return int(number) if number.isdecimal() and home.adapter(int(number)) == folder else None


def reconcile(server: Vllm, home: Home, wanted: int | None) -> None:
    """Make the server serve version `wanted`, or nothing for None. Safe to repeat.

    A version is loaded under its own name and tested before the alias moves to it. A failure keeps the alias.

    Raises:
        VllmError: a step failed.
    """
    loaded = server.adapters()
    keep: set[str] = set()
    if wanted is not None:
        name, folder = version_name(wanted), str(home.adapter(wanted))
        keep = {name, ALIAS}
        if loaded.get(name) != folder or loaded.get(ALIAS) != folder:
            _load_checked(server, name, folder, loaded)
        if loaded.get(ALIAS) != folder:
            _move_alias(server, folder, loaded.get(ALIAS))
    for name in loaded:
        if (name == ALIAS or name.startswith(PREFIX)) and name not in keep:
            server.unload(name)


def _load_checked(server: Vllm, name: str, folder: str, loaded: dict[str, str]) -> None:
    """Load a version under its own name and test it. Unload it if the test fails."""
    if loaded.get(name, folder) != folder:
        server.unload(name)
    if loaded.get(name) != folder:
        server.load(name, folder)
    try:
        server.check(name)
    except VllmError:
        _unload_quietly(server, name)
        raise


def _move_alias(server: Vllm, folder: str, before: str | None) -> None:
    """Unload the alias, then load it again.

    `load_inplace` would avoid the gap, but vLLM 0.32 then reads the adapter from disk at every step, and crashes when
    the folder is gone. The gap is the moment between the two calls; requests during the load wait. Measured: 7 of 507
    requests during 15 moves got a 404.
    """
    if before is not None:
        server.unload(ALIAS)
    try:
        server.load(ALIAS, folder)
    except VllmError:
        if before is not None:
            _load_quietly(server, ALIAS, before)
        raise


def _unload_quietly(server: Vllm, name: str) -> None:
    """Clean up before a failure is reported. The next poll finds any leftovers."""
    try:
        server.unload(name)
    except VllmError as error:
        log("Adapter not unloaded", level=logging.WARNING, model=name, reason=str(error))


def _load_quietly(server: Vllm, name: str, folder: str) -> None:
    """Restore the previous adapter before a failure is reported."""
    try:
        server.load(name, folder)
    except VllmError as error:
        log("Adapter not restored", level=logging.WARNING, model=name, folder=folder, reason=str(error))
