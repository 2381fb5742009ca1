"""The service's states, as users see them. For transitions see service/cycle/states.py."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """State of the service."""

    STARTING = "starting"
    STANDBY = "standby"
    """Another service holds the stream's lease."""
    WAITING = "waiting"
    CLAIMING = "claiming"
    TRAINING = "training"
    JUDGING = "judging"
    PAUSED = "paused"
    """A problem must be fixed first, or time must pass. /health shows the reason."""
    ON_HOLD = "on_hold"
    """Somebody paused the service (`codelupe pause`, or the page)."""
    STOPPED = "stopped"
