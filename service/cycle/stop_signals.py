"""The signals that stop a service cleanly: Ctrl-C, SIGTERM, and SIGHUP when its terminal closes."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stop_signals(stop: threading.Event) -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP (the terminal closed) set the event.

    A second Ctrl-C changes nothing, because the trainer is writing its checkpoint. A SIGHUP that is ignored already,
    as under nohup, stays ignored.
    """
    terminals = [stream.fileno() for stream in (sys.stdout, sys.stderr) if stream.isatty()]

    def handle(number: int, frame: object) -> None:
        stop.set()

    def on_hangup(number: int, frame: object) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for terminal in terminals:  # a write to a closed terminal would fail and interrupt the clean stop
            os.dup2(nowhere, terminal)
        os.close(nowhere)
        stop.set()

    handlers = {signal.SIGINT: handle, signal.SIGTERM: handle}
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        handlers[signal.SIGHUP] = on_hangup
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
