"""Keeps the vLLM server on the current adapter: what it serves is derived from `current` again and again.

A thread of its own: loading takes a minute, and a server that is down, slow or silent must not hold the loop.
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
LOOK_SECONDS = 3.0
FIRST_DELAY_SECONDS = 5.0
LONGEST_DELAY_SECONDS = 300.0
LONGEST_ABSENCE_SECONDS = 15.0
"""The longest wait for a server that does not answer: asking costs nothing, and editors wait for it."""
CAUSE = "serving"


def version_name(version: int) -> str:
    """An adapter's own model name."""
    return f"{PREFIX}{version:06d}"


@contextmanager
def serving(url: str, api_key: str | None, home: Home, board: Board) -> Iterator[None]:
    """Follow `current` for as long as the block runs; afterwards vLLM keeps what it serves."""
    stop = threading.Event()
    follower = Follower(Vllm(url, api_key), home, board)
    thread = threading.Thread(target=follower.run, args=(stop,), name="serving", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(5)  # a call in flight has a deadline of its own, and the process does not wait for it


class Follower:
    """Makes one vLLM server serve what the board calls current."""

    def __init__(self, server: Vllm, home: Home, board: Board, *, look_seconds: float = LOOK_SECONDS) -> None:
        self._server, self._home, self._board = server, home, board
        self._look_seconds = look_seconds
        self._failures = 0
        self._retry_at = 0.0
        self._tried: int | None = None
        self._reason: str | None = None
        self._good: int | None = None
        """The version that the alias was last seen with."""

    def run(self, stop: threading.Event) -> None:
        """Look every few seconds until told to stop."""
        try:
            while not stop.is_set():
                self.look(self._board.read())
                stop.wait(self._look_seconds)
        finally:
            if not stop.is_set():  # an error of ours: the traceback is on stderr, and /health says so too
                self._board.trouble(CAUSE, "following the current adapter ended with an error; restart the service")
            self._server.close()

    def look(self, snapshot: Snapshot) -> None:
        """One look: reconcile unless there is nothing to go by, or the last failure was just now."""
        if not snapshot.current_known or snapshot.state == State.STANDBY:
            return  # another service leads: what is current is its to say
        wanted = snapshot.current_version
        if wanted != self._tried or time.monotonic() >= self._retry_at:
            self._try(wanted)
        self._show(self._ask())

    def _try(self, wanted: int | None) -> None:
        self._failures = self._failures if wanted == self._tried else 0
        self._tried = wanted
        try:
            reconcile(self._server, self._home, wanted)
        except VllmError as error:
            absent = isinstance(error, VllmUnavailable)
            self._failed(wanted, str(error), LONGEST_ABSENCE_SECONDS if absent else LONGEST_DELAY_SECONDS)
        else:
            self._failures, self._retry_at, self._reason, self._good = 0, 0.0, None, wanted
            self._board.clear(CAUSE)

    def _failed(self, wanted: int | None, reason: str, longest_seconds: float) -> None:
        self._retry_at = time.monotonic() + min(longest_seconds, FIRST_DELAY_SECONDS * 2.0 ** min(self._failures, 10))
        self._failures += 1
        what = f"version {wanted} is not served" if wanted is not None else "the adapters are not unloaded"
        self._board.trouble(CAUSE, f"{what}: {reason}")
        if reason != self._reason:
            log("Not served", level=logging.WARNING, version=wanted, reason=reason)
        self._reason = reason

    def _ask(self) -> int | None:
        """The version that editors reach now. After a restart of vLLM, with a current one that cannot be served, the
        last good one is brought back."""
        try:
            served = served_version(self._server, self._home)
            if served is None and self._good is not None and self._tried is not None:
                self._server.load(ALIAS, str(self._home.adapter(self._good)))
                return self._good
        except VllmError:  # the same that reconciling met, or will at the next look
            return None
        self._good = served
        return served

    def _show(self, served: int | None) -> None:
        """Put it on the board; one event when it changed."""
        before = self._board.read().served_version
        if served != before:
            log("Served" if served is not None else "Nothing served", version=served, before=before, model=ALIAS)
            self._board.note(served_version=served)


def served_version(server: Vllm, home: Home) -> int | None:
    """The version behind the alias, or None.

    Raises:
        VllmError: the server cannot be asked.
    """
    folder = Path(server.adapters().get(ALIAS, ""))
    number = folder.name.removeprefix("v")
    return int(number) if number.isdecimal() and home.adapter(int(number)) == folder else None


def reconcile(server: Vllm, home: Home, wanted: int | None) -> None:
    """Make the server serve version `wanted` (None: nothing), from whatever it serves now. Safe to repeat.

    A version is loaded under its own name and has to answer before the alias goes to it; what fails leaves the
    alias where it is.

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
    """Load a version under its own name and let it answer; one that does not is unloaded again."""
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
    """Unload and load: `load_inplace` would leave no gap, but vLLM 0.32 then reads the adapter from disk again at
    every step, and dies when its folder is gone. The gap is the moment between two calls: what comes in while the
    second one loads waits for it (seen: of 507 requests during 15 moves, 7 got a 404)."""
    if before is not None:
        server.unload(ALIAS)
    try:
        server.load(ALIAS, folder)
    except VllmError:
        if before is not None:
            _load_quietly(server, ALIAS, before)
        raise


def _unload_quietly(server: Vllm, name: str) -> None:
    """Tidy up after a failure that is about to be reported; what is left the next look finds."""
    try:
        server.unload(name)
    except VllmError as error:
        log("Adapter not unloaded", level=logging.WARNING, model=name, reason=str(error))


def _load_quietly(server: Vllm, name: str, folder: str) -> None:
    """Put back what was there, after a failure that is about to be reported."""
    try:
        server.load(name, folder)
    except VllmError as error:
        log("Adapter not put back", level=logging.WARNING, model=name, folder=folder, reason=str(error))
