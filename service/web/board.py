"""The service's present state: written by the daemon, read by HTTP without using the database."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

from db.chunks import Pending
from db.runs import Totals

STALE_HEARTBEAT_SECONDS = 180.0
"""A loop without a heartbeat for this long counts as dead."""
KEPT_ENDINGS = 50

Status = Literal["healthy", "degraded", "unhealthy"]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Progress of the live run, from its events."""

    run_id: int
    step: int = 0
    steps_total: int = 0
    train_loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    tokens_per_second: float | None = None
    tokens_total: int = 0
    gpu_memory_bytes: int = 0
    """Of the trainer's tensors, at most."""
    seconds_left: float | None = None
    """Estimate up to the last step, from the latest steps. Evaluation and export come on top. None: too early."""
    misses: int = 0
    """Evaluations in a row without enough gain."""
    patience: int | None = None
    """Training stops early at as many misses. None: no evaluation yet."""
    gpu_utilization: float | None = None
    """How busy the run's cards are, from 0 to 1. Their driver tells this and the next four. None without a card."""
    gpu_card_used_bytes: float | None = None
    gpu_card_total_bytes: float | None = None
    gpu_power_watts: float | None = None
    gpu_temperature_celsius: float | None = None
    energy_joules: float | None = None
    """What the cards have used in this run."""
    process_memory_bytes: float | None = None
    process_cpu_percent: float | None = None
    """Processor time of the trainer's process; 100 is one processor."""
    stage: str | None = None
    """What the trainer does now besides steps, if it takes long: samples, download, model, evaluation."""
    stage_done: int = 0
    stage_total: int = 0


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a run ended."""

    number: int
    """Counts the runs that ended since the service started, from 1."""
    run_id: int
    decision: Literal["promote", "refuse", "inconclusive", "failed"]
    reason: str


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The service's state at one moment."""

    state: str = "starting"
    state_since: float = field(default_factory=time.time)
    heartbeat: float = field(default_factory=time.monotonic)
    troubles: Mapping[str, str] = field(default_factory=dict)
    """Problems by cause (`database`, `disk`, `trainer`, …), with what to do."""
    stream: str = ""
    model: str = ""
    batch_size: int = 0
    lora_rank: int = 0
    database_ready: bool = False
    migrations_ready: bool = False
    disk_free_bytes: int | None = None
    min_new_files: int = 0
    held_since: float | None = None
    """When somebody paused the service (Unix time). None: nobody did."""
    pending: Pending | None = None
    totals: Totals | None = None
    """As of the last verdict."""
    rows_in_run: int = 0
    """Rows that the live run has claimed since `totals`."""
    current_version: int | None = None
    current_published_at: datetime | None = None
    current_known: bool = False
    """Whether `current_version` has been read from the database. Until then, ignore its None."""
    served_version: int | None = None
    """The version that vLLM serves. None if there is no server or no answer."""
    progress: Progress | None = None
    losses: Mapping[str, float] = field(default_factory=dict)
    """Last known loss by split: train, eval, anchor, current (nats per token)."""
    phase_seconds: Mapping[str, float] = field(default_factory=dict)
    """Seconds of each phase of the last finished run."""
    last_verdict: Mapping[str, Any] | None = None
    gpu_energy_joules: float | None = None
    """What the cards have used in all runs since the service started. None without a card."""
    endings: tuple[Ending, ...] = ()
    """The last runs that ended since the service started, in order."""
    last_event: float | None = None
    """When the trainer last wrote an event (monotonic clock)."""
    non_finite: int = 0
    """How many losses or gradients were not finite since the service started."""
    disk_needed_bytes: int | None = None
    """Free space that a claim requires."""
    alerts: Mapping[str, int] = field(default_factory=dict)
    """Alerts by what became of them."""

    def event_age_seconds(self) -> float | None:
        """Seconds since the trainer's last event. None without a trainer."""
        if self.state != "training" or self.last_event is None:
            return None
        return time.monotonic() - self.last_event

    def heartbeat_age_seconds(self) -> float:
        """Seconds since the loop's last heartbeat."""
        return time.monotonic() - self.heartbeat

    def health(self) -> tuple[Status, str]:
        """Return the status and its reason. Training and waiting are healthy."""
        age = self.heartbeat_age_seconds()
        if age > STALE_HEARTBEAT_SECONDS:
            return (
                "unhealthy",
                f"the main loop hangs for {age:.0f} s (state {self.state}). Restart the service",
            )
        if self.troubles:
            return "degraded", "; ".join(self.troubles.values())
        return "healthy", _doing(self)


def _doing(snapshot: Snapshot) -> str:
    """Describe what a healthy service is doing."""
    if snapshot.state == "on_hold" and snapshot.held_since is not None:
        since = datetime.fromtimestamp(snapshot.held_since, UTC)
        return f"paused on request since {since:%Y-%m-%d %H:%M} UTC. `codelupe resume` or the page ends the pause"
    if snapshot.state == "waiting" and snapshot.pending is not None:
        return f"waiting: {snapshot.pending.rows} of {snapshot.min_new_files} new files"
    if snapshot.state == "training" and snapshot.progress is not None:
        progress = snapshot.progress
        after = "; then it pauses, as somebody asked" if snapshot.held_since is not None else ""
        return f"training run {progress.run_id}, step {progress.step} of {progress.steps_total or '?'}{after}"
    return snapshot.state


class Board:
    """Holds the current snapshot. Changes replace it as a whole. Any thread may read or write."""

    def __init__(self, first: Snapshot) -> None:
        self._snapshot = first
        self._lock = threading.Lock()

    def read(self) -> Snapshot:
        """Return the current snapshot."""
        return self._snapshot

    def update(self, **changes: Any) -> None:
        """Replace fields from the main loop. Each call is also a heartbeat."""

        def change(now: Snapshot) -> Snapshot:
            since = now.state_since if changes.get("state", now.state) == now.state else time.time()
            return replace(now, **{"state_since": since, "heartbeat": time.monotonic(), **changes})

        self._change(change)

    def note(self, **changes: Any) -> None:
        """Replace fields from another thread, without a heartbeat."""
        self._change(lambda now: replace(now, **changes))

    def beat(self) -> None:
        """Record a heartbeat of the main loop."""
        self.update()

    def is_alive(self) -> bool:
        """Whether the main loop has sent a heartbeat lately."""
        return self.read().heartbeat_age_seconds() <= STALE_HEARTBEAT_SECONDS

    def trouble(self, cause: str, reason: str) -> None:
        """Report a problem until `clear(cause)`."""
        self._change(lambda now: replace(now, troubles={**now.troubles, cause: reason}))

    def clear(self, cause: str) -> None:
        """Remove a problem."""
        self._change(lambda now: replace(now, troubles={k: v for k, v in now.troubles.items() if k != cause}))

    def ended(self, run_id: int, decision: Literal["promote", "refuse", "inconclusive", "failed"], reason: str) -> None:
        """Add a run that has ended. Also a heartbeat."""
        number = self.read().endings[-1].number + 1 if self.read().endings else 1  # only the main loop adds any
        ending = Ending(number=number, run_id=run_id, decision=decision, reason=reason)
        self.update(endings=(*self.read().endings, ending)[-KEPT_ENDINGS:])

    def _change(self, change: Callable[[Snapshot], Snapshot]) -> None:
        """Read and write under one lock, so that no change is lost."""
        with self._lock:
            self._snapshot = change(self._snapshot)
