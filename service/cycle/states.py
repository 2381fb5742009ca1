"""Allowed transitions between the daemon's states."""

from __future__ import annotations

from service.web.state import State

TRANSITIONS: dict[State, frozenset[State]] = {
    State.STARTING: frozenset(
        {State.STANDBY, State.WAITING, State.TRAINING, State.JUDGING, State.PAUSED, State.ON_HOLD}
    ),
    State.STANDBY: frozenset({State.STARTING, State.PAUSED}),
    State.WAITING: frozenset({State.CLAIMING, State.PAUSED, State.STANDBY, State.ON_HOLD}),
    State.CLAIMING: frozenset({State.TRAINING, State.WAITING, State.PAUSED, State.STANDBY, State.STARTING}),
    State.TRAINING: frozenset(
        {State.JUDGING, State.WAITING, State.PAUSED, State.STANDBY, State.STARTING, State.ON_HOLD}
    ),
    State.JUDGING: frozenset({State.WAITING, State.PAUSED, State.STANDBY, State.STARTING}),
    State.PAUSED: frozenset({State.STARTING, State.STANDBY}),
    State.ON_HOLD: frozenset({State.STARTING, State.STANDBY, State.PAUSED}),
    State.STOPPED: frozenset(),
}
"""STOPPED may follow every state. STARTING follows a state whose writes may not have reached the database."""
TOLD_BY_EVENTS = (State.STANDBY, State.CLAIMING, State.TRAINING, State.JUDGING, State.PAUSED, State.ON_HOLD)
"""Entering one of these states logs an event of its own (Standby, Claimed, Training process, Verdict, Paused,
On hold)."""
WRITING = (State.CLAIMING, State.TRAINING, State.JUDGING)
"""States that write. If the connection is lost, a COMMIT may have arrived, so the daemon starts afresh."""


def may_follow(now: State, then: State) -> bool:
    """Whether the transition is allowed."""
    return then is State.STOPPED or then is now or then in TRANSITIONS[now]
