"""What the service knows of itself right now: written by the daemon, read by HTTP without touching the database."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from db.chunks import Pending
from db.runs import Totals

STALE_HEARTBEAT_SECONDS = 180.0
"""A loop that has not come round for this long is taken for dead."""

Status = Literal["healthy", "degraded", "unhealthy"]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The live run, as its events tell it."""

    run_id: int
    step: int = 0
    steps_total: int = 0
    train_loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    tokens_per_second: float | None = None
    tokens_total: int = 0
    gpu_memory_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One moment of the service."""

    state: str = "starting"
    state_since: float = field(default_factory=time.time)
    heartbeat: float = field(default_factory=time.monotonic)
    troubles: Mapping[str, str] = field(default_factory=dict)
    """What is wrong by cause (`database`, `disk`, `trainer`, …), in words a person can act on."""
    stream: str = ""
    model: str = ""
    batch_size: int = 0
    lora_rank: int = 0
    database_ready: bool = False
    migrations_ready: bool = False
    disk_free_bytes: int | None = None
    min_new_files: int = 0
    pending: Pending | None = None
    totals: Totals | None = None
    current_version: int | None = None
    current_known: bool = False
    """Whether `current_version` has been read from the database yet: until then its None means nothing."""
    served_version: int | None = None
    """The version that the vLLM server answers with; None when there is none, or it cannot be asked."""
    progress: Progress | None = None
    losses: Mapping[str, float] = field(default_factory=dict)
    """Last known loss by split: train, eval, anchor, current (nats a token)."""
    phase_seconds: Mapping[str, float] = field(default_factory=dict)
    """How long each phase of the last finished run took."""
    last_verdict: Mapping[str, Any] | None = None

    def heartbeat_age_seconds(self) -> float:
        """Seconds since the loop last came round."""
        return time.monotonic() - self.heartbeat

    def health(self) -> tuple[Status, str]:
        """The one status and its reason. Training and waiting are healthy."""
        age = self.heartbeat_age_seconds()
        if age > STALE_HEARTBEAT_SECONDS:
            return (
                "unhealthy",
                f"the loop has not moved for {age:.0f} s (state {self.state}): restart the service",
            )
        if self.troubles:
            return "degraded", "; ".join(self.troubles.values())
        return "healthy", _doing(self)


def _doing(snapshot: Snapshot) -> str:
    """What a healthy service is busy with."""
    if snapshot.state == "waiting" and snapshot.pending is not None:
        return f"waiting: {snapshot.pending.rows} of {snapshot.min_new_files} new files"
    if snapshot.state == "training" and snapshot.progress is not None:
        progress = snapshot.progress
        return f"training run {progress.run_id}, step {progress.step} of {progress.steps_total or '?'}"
    return snapshot.state


class Board:
    """The current snapshot, replaced whole so that a reader never sees half of a change. Any thread may write."""

    def __init__(self, first: Snapshot) -> None:
        self._snapshot = first
        self._lock = threading.Lock()

    def read(self) -> Snapshot:
        """The present snapshot."""
        return self._snapshot

    def update(self, **changes: Any) -> None:
        """Replace some fields, from the loop: each call is also its heartbeat."""

        def change(now: Snapshot) -> Snapshot:
            since = now.state_since if changes.get("state", now.state) == now.state else time.time()
            return replace(now, **{"state_since": since, "heartbeat": time.monotonic(), **changes})

        self._change(change)

    def note(self, **changes: Any) -> None:
        """Replace some fields, from another thread: that one is alive says nothing of the loop."""
        self._change(lambda now: replace(now, **changes))

    def beat(self) -> None:
        """The loop is alive."""
        self.update()

    def trouble(self, cause: str, reason: str) -> None:
        """Something is wrong until `clear(cause)`."""
        self._change(lambda now: replace(now, troubles={**now.troubles, cause: reason}))

    def clear(self, cause: str) -> None:
        """That is right again."""
        self._change(lambda now: replace(now, troubles={k: v for k, v in now.troubles.items() if k != cause}))

    def _change(self, change: Callable[[Snapshot], Snapshot]) -> None:
        """Read and write under one lock: two writers never undo each other's change."""
        with self._lock:
            self._snapshot = change(self._snapshot)
