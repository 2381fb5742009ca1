"""Retries an operation while the database is unavailable. All other errors are passed on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import tenacity
from tenacity.wait import wait_random_exponential

from db.errors import Unavailable

T = TypeVar("T")

LONGEST_WAIT_SECONDS = 30.0


def retried(
    operation: Callable[[], T],
    *,
    give_up_seconds: float | None,
    on_wait: Callable[[Unavailable, float], None] | None = None,
    stop: threading.Event | None = None,
) -> T:
    """Call `operation` until it does not raise Unavailable. The waits are random, and grow up to 30 s.

    Args:
        give_up_seconds: raise the last Unavailable after about this time. None retries for ever.
        on_wait: called before each wait with the error and the seconds to wait.
        stop: when this event is set, the wait ends early and the last Unavailable is raised.
    """
    stopped = threading.Event() if stop is None else stop

    def announce(state: tenacity.RetryCallState) -> None:
        if on_wait is None or state.outcome is None or state.next_action is None:
            return
        error = state.outcome.exception()
        assert isinstance(error, Unavailable)
        on_wait(error, float(state.next_action.sleep))

    give_up = tenacity.stop_never if give_up_seconds is None else tenacity.stop_after_delay(give_up_seconds)
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(Unavailable),
        wait=wait_random_exponential(multiplier=0.5, min=0.1, max=LONGEST_WAIT_SECONDS),
        stop=tenacity.stop_any(give_up, tenacity.stop_when_event_set(stopped)),
        sleep=tenacity.sleep_using_event(stopped),
        before_sleep=announce,
        reraise=True,
    )

    def once_unless_stopped(state: list[Unavailable]) -> T:
        if state and stopped.is_set():  # set during the wait: do not use the database again
            raise state[-1]
        try:
            return operation()
        except Unavailable as error:
            state.append(error)
            raise

    return retrying(once_unless_stopped, [])
