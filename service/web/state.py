"""What a service can be doing, under the names that users see. The order of states: service/cycle/states.py."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """What the service is doing."""

    STARTING = "starting"
    STANDBY = "standby"
    """Another service holds the stream's lease."""
    WAITING = "waiting"
    CLAIMING = "claiming"
    TRAINING = "training"
    JUDGING = "judging"
    PAUSED = "paused"
    """Something has to be mended first, or time has to pass; /health says what."""
    STOPPED = "stopped"
