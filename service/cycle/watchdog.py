"""Ends the process when its main loop hangs, so that a supervisor (a container's restart policy) restarts it.

The loop sends heartbeats while it sleeps, trains or waits for the database. Nothing is lost when the process ends: the
trainer's stdin closes, so it writes a checkpoint and ends, and the next start resumes the run.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from service.logs import event as log
from service.web.board import STALE_HEARTBEAT_SECONDS, Board

CHECK_SECONDS = 5.0
PATIENCE_SECONDS = STALE_HEARTBEAT_SECONDS + 60.0
"""/health and /livez report the hang one minute earlier."""
EXIT_CODE = 70
"""EX_SOFTWARE of sysexits.h."""


def _end() -> None:
    faulthandler.dump_traceback()  # the stack of every thread, on stderr
    os._exit(EXIT_CODE)  # a hanging loop does not react to anything else


@contextmanager
def watched(board: Board, end: Callable[[], None] = _end) -> Iterator[None]:
    """Watch the loop's heartbeat while the block runs. Call `end` once if it stops for too long.

    Only time in which this thread runs counts. A process that was suspended (SIGSTOP, laptop lid) does not count as
    hanging.
    """
    left = threading.Event()

    def watch() -> None:
        last, seconds = None, 0.0
        while not left.wait(CHECK_SECONDS):
            heartbeat = board.read().heartbeat
            seconds = seconds + CHECK_SECONDS if heartbeat == last else 0.0
            last = heartbeat
            if seconds >= PATIENCE_SECONDS:
                state = board.read().state
                log("Main loop hangs; ending the process", level=logging.ERROR, state=state, for_seconds=seconds)
                end()
                return

    thread = threading.Thread(target=watch, name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        left.set()
        thread.join()
