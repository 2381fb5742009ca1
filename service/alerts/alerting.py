"""Watches the board from a thread while the service runs, and sends what people want to know."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from service.alerts.alert import Alert, Trouble, about_trouble
from service.alerts.limiter import Limiter
from service.alerts.observer import Observer
from service.alerts.outbox import Outbox
from service.alerts.targets import Target
from service.logs import event as log
from service.settings.load import Settings
from service.web.board import Board, Snapshot

LOOK_SECONDS = 0.5
END_SECONDS = 2.0
"""How long alerts may hold up the end of the service."""
ONCE_SECONDS = 10.0
"""The same with `up --once`: its verdict is what it ran for."""


@contextmanager
def alerting(targets: list[Target], settings: Settings, board: Board, *, once: bool) -> Iterator[None]:
    """Send alerts while the block runs, and the last ones after it."""
    if not targets:
        yield
        return
    limiter = Limiter()
    observer = Observer(settings.alert_on, settings.public_url, limiter)
    outbox = Outbox(targets, lambda counts: board.note(alerts=counts))
    left = threading.Event()

    def look() -> None:
        held = observer.held
        for alert in observer.look(board.read()):
            log("Alert", kind=alert.kind, title=alert.title)
            outbox.post(alert)
        if observer.held > held:
            outbox.count("held", observer.held - held)

    def watch() -> None:
        try:
            while not left.wait(LOOK_SECONDS):
                look()
        finally:
            if not left.is_set():  # a bug: the traceback is on stderr, and /health reports it too
                board.trouble("alerts", "the alerts stopped with an error. Restart the service")

    thread = threading.Thread(target=watch, name="alerts", daemon=True)
    thread.start()
    log("Alerts are sent", targets=", ".join(target.name for target in targets), kinds=", ".join(settings.alert_on))
    try:
        yield
    except Exception as error:  # it goes on up: this only tells it
        if "stuck" in settings.alert_on:
            outbox.post(_crash(board.read(), error, settings.public_url))
        raise
    finally:
        left.set()
        thread.join()
        look()  # the verdict of `up --once` came just now
        if limiter.held():
            log("Alerts were held back by the rate limit", level=logging.WARNING, alerts=limiter.held())
        outbox.close(ONCE_SECONDS if once else END_SECONDS)


def trial_alert(settings: Settings) -> Alert:
    """Return the alert of `codelupe alert-test`."""
    stream = settings.recipe.stream
    text = f"This is a test of the alerts of the stream {stream}. Nothing is wrong."
    title = f"CodeLupe {stream}: test"
    return Alert(kind="test", severity="good", title=title, text=text, topic="test")


def _crash(snapshot: Snapshot, error: Exception, page: str | None) -> Alert:
    """The error's text stays in the log: here it could show anything."""
    trouble = Trouble(kind="stuck", reason=f"it ends because of an error ({type(error).__name__}). See its log")
    return replace(about_trouble(snapshot, "error", trouble, page), topic="crash")
