"""Ends the process when its loop hangs, so that whoever keeps it running (a container's restart policy) starts it anew.

Waiting is no hanging: the loop beats while it sleeps, trains, or has no database. What is lost is nothing: the next
start takes up the live run, and the trainer writes its checkpoint and ends when our end of its stdin closes.
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

LOOK_SECONDS = 5.0
PATIENCE_SECONDS = STALE_HEARTBEAT_SECONDS + 60.0
"""/health and /livez say so for a minute before."""
EXIT_CODE = 70
"""EX_SOFTWARE of sysexits.h."""


def _end() -> None:
    faulthandler.dump_traceback()  # where every thread hangs, on stderr
    os._exit(EXIT_CODE)  # the loop would not hear anything gentler


@contextmanager
def watched(board: Board, end: Callable[[], None] = _end) -> Iterator[None]:
    """Watch the loop's heartbeat for as long as the block runs; `end` is called once, when it stood still for too long.

    Time counts as it passes here: a process that was stopped as a whole (SIGSTOP, a laptop's lid) is not taken for one
    that hangs.
    """
    left = threading.Event()

    def watch() -> None:
        last, seconds = None, 0.0
        while not left.wait(LOOK_SECONDS):
            heartbeat = board.read().heartbeat
            seconds = seconds + LOOK_SECONDS if heartbeat == last else 0.0
            last = heartbeat
            if seconds >= PATIENCE_SECONDS:
                state = board.read().state
                log("The loop hangs; the process ends", level=logging.ERROR, state=state, for_seconds=seconds)
                end()
                return

    thread = threading.Thread(target=watch, name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        left.set()
        thread.join()
