"""`codelupe status --watch`: a screen that is drawn again and again; lines where there is no terminal."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console
from rich.live import Live

from service import stdio
from service.cli.console import out
from service.cli.watch_source import Looker, Moment
from service.cli.watch_view import line, screen, what_counts
from service.settings.load import Settings
from service.web.api import Pace

REDRAWS_PER_SECOND = 4.0
"""A terminal that changes its size is filled again as soon."""


def watch(settings: Settings, *, every: float, as_json: bool) -> None:
    """Show the state of the stream until Ctrl-C or SIGTERM.

    Raises:
        PreconditionError, DatabaseError: neither a service nor the database answers at the first look.
    """
    looker = Looker(settings)
    with _ends_quietly():
        first = looker.look()
        if as_json or not out.is_terminal:
            _print_lines(looker, first, every, as_json=as_json)
        else:
            _draw(looker, first, every)


def _draw(looker: Looker, moment: Moment, every: float) -> None:
    """Draw on the terminal's other screen, so that the first one is as it was afterwards."""
    shown, console = screen(moment, every=every), Console(highlight=False)
    with Live(
        get_renderable=lambda: shown, console=console, screen=True, refresh_per_second=REDRAWS_PER_SECOND,
        redirect_stdout=False, redirect_stderr=False,
    ) as live:  # fmt: skip
        while True:
            time.sleep(_pause(moment, every))
            moment = looker.look()
            shown = screen(moment, every=every)
            live.refresh()


def _print_lines(looker: Looker, moment: Moment, every: float, *, as_json: bool) -> None:
    """Print each look as JSON, or a plain line for each change."""
    before: object = None
    while True:
        if as_json:
            _print(json.dumps(moment.as_json()))
        elif (now := what_counts(moment)) != before:
            before = now
            _print(f"{time.strftime('%H:%M:%S')} {line(moment)}")
        time.sleep(_pause(moment, every))
        moment = looker.look()


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _pause(moment: Moment, every: float) -> float:
    """Return the seconds until the next look. A service with many watchers asks each to come less often."""
    asked = moment.now.get("poll_seconds") or 0.0
    return max(every, asked) if asked > Pace.LEAST_SECONDS else every


class _Ended(Exception):
    """SIGTERM or SIGHUP."""


@contextmanager
def _ends_quietly() -> Iterator[None]:
    """End the block at Ctrl-C, SIGTERM or a reader that has gone, with the terminal as it was."""

    def end(_number: int, _frame: FrameType | None) -> None:
        raise _Ended

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    except (KeyboardInterrupt, _Ended):
        pass
    except BrokenPipeError:
        stdio.give_up(sys.stdout)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
