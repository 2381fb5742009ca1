"""Compares the board's snapshots, and finds what to tell: runs that ended, troubles that begin and end."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from service.alerts.alert import Alert, Trouble, about_end, about_run, about_trouble, duration, shortened, topic_of
from service.alerts.limiter import Limiter
from service.web.board import STALE_HEARTBEAT_SECONDS, Snapshot

SILENT_TRAINER_SECONDS = 1800.0
"""A trainer without an event for this long makes no progress."""
DEGRADED = frozenset({"database", "lease", "pointer", "serving", "corpus", "alerts"})
"""Troubles with which the service goes on, or tries again by itself. The others pause it."""
PATIENCE_SECONDS = {"degraded": 30.0, "stuck": 5.0}
"""A trouble of this kind is told if it lasts so long: a restart of the database does not. Others are told at once."""
OVER_SECONDS = 60.0
"""A trouble that is gone for so long is over. A pause ends for a moment when the service tries again."""


@dataclass(frozen=True, kw_only=True)
class _Open:
    """A trouble that has begun."""

    trouble: Trouble
    began: float
    seen: float
    tried: bool = False
    """Whether the rate limit was asked."""
    told: bool = False


class Observer:
    """Finds alerts in one snapshot after the other."""

    def __init__(
        self,
        kinds: Collection[str],
        page: str | None,
        limiter: Limiter,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kinds, self._page, self._limiter, self._clock = kinds, page, limiter, clock
        self._number = 0
        """The last run that was seen to end."""
        self._open: dict[str, _Open] = {}
        self.held = 0
        """How many alerts the rate limit has held back so far."""

    def look(self, snapshot: Snapshot) -> list[Alert]:
        """Return what is to be told now."""
        now = self._clock()
        found = self._runs(snapshot)
        current = troubles(snapshot)
        for cause, trouble in current.items():
            self._note(snapshot, cause, trouble, now)
            if alert := self._begun(snapshot, cause, now):
                found.append(alert)
        for cause in [cause for cause in self._open if cause not in current]:
            found += self._gone(snapshot, cause, now)
        return found + [self._late(alert) for alert in self._limiter.due()]

    def _runs(self, snapshot: Snapshot) -> list[Alert]:
        ended = [ending for ending in snapshot.endings if ending.number > self._number]
        self._number = max((ending.number for ending in ended), default=self._number)
        alerts = (about_run(snapshot, ending, self._page) for ending in ended)
        return [admitted for alert in alerts if (admitted := self._admit(alert))]

    def _note(self, snapshot: Snapshot, cause: str, trouble: Trouble, now: float) -> None:
        """Remember a trouble. One with another reason is another trouble."""
        known = self._open.get(cause)
        if known is not None and topic_of(known.trouble.reason) == topic_of(trouble.reason):
            self._open[cause] = replace(known, trouble=trouble, seen=now)
            return
        told_by_run = "failed" in self._kinds and any(
            ending.decision == "failed" and ending.reason == trouble.reason for ending in snapshot.endings
        )
        self._open[cause] = _Open(trouble=trouble, began=now, seen=now, tried=told_by_run, told=told_by_run)

    def _begun(self, snapshot: Snapshot, cause: str, now: float) -> Alert | None:
        known = self._open[cause]
        kind = known.trouble.kind
        if known.tried or now - known.began < PATIENCE_SECONDS.get(kind, 0.0):
            return None
        admitted = self._admit(about_trouble(snapshot, cause, known.trouble, self._page))
        self._open[cause] = replace(known, tried=True, told=admitted is not None)
        return admitted

    def _gone(self, snapshot: Snapshot, cause: str, now: float) -> list[Alert]:
        """Tell the end of a trouble whose begin was told."""
        known = self._open[cause]
        if now - known.seen < OVER_SECONDS:
            return []
        del self._open[cause]
        if not known.told or known.trouble.kind not in self._kinds:
            return []
        self._limiter.forget(topic_of(shortened(known.trouble.reason)))
        return [about_end(snapshot, cause, known.trouble, known.seen - known.began, self._page)]

    def _admit(self, alert: Alert) -> Alert | None:
        if alert.kind not in self._kinds:
            return None
        admitted = self._limiter.admit(alert)
        self.held += admitted is None
        return admitted

    def _late(self, alert: Alert) -> Alert:
        """An alert that was held back. If it is about a trouble, that may be over."""
        if alert.cause is None:
            return alert
        if (known := self._open.get(alert.cause)) is None:
            return alert.with_more("It is over.")
        self._open[alert.cause] = replace(known, told=True)
        return alert


def troubles(snapshot: Snapshot) -> dict[str, Trouble]:
    """Return everything that is wrong now, by cause."""
    found = {cause: Trouble(kind=_kind(cause), reason=reason) for cause, reason in snapshot.troubles.items()}
    if snapshot.held_since is not None:
        since = datetime.fromtimestamp(snapshot.held_since, UTC)
        found["on hold"] = Trouble(
            kind="paused", reason=f"somebody paused it at {since:%H:%M} UTC. `codelupe resume` ends this"
        )
    if (age := snapshot.heartbeat_age_seconds()) > STALE_HEARTBEAT_SECONDS:
        reason = f"the main loop hangs for {age:.0f} s in the state {snapshot.state}, and the process ends in a minute"
        found["main loop"] = Trouble(kind="stuck", reason=reason)
    silent = snapshot.event_age_seconds()
    if silent is not None and silent > SILENT_TRAINER_SECONDS:
        run = snapshot.progress.run_id if snapshot.progress else "?"
        limit = duration(SILENT_TRAINER_SECONDS)
        reason = f"the trainer of run {run} has not reported anything for more than {limit}. See trainer.log of the run"
        found["trainer silent"] = Trouble(kind="stuck", reason=reason)
    return found


def _kind(cause: str) -> str:
    if cause == "disk":
        return "disk"
    return "degraded" if cause in DEGRADED else "paused"
