"""The rate limit: at most ten alerts of one kind an hour, and each reason once an hour. The others are counted."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from service.alerts.alert import Alert, duration

HOUR_SECONDS = 3600.0
MOST_PER_HOUR = 10


@dataclass(frozen=True, kw_only=True)
class _Held:
    """What is held back of one kind."""

    count: int
    last: Alert
    since: float


class Limiter:
    """Decides which alerts may be sent now. Everything else is told in the next one, or when the hour is over."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._sent: dict[str, deque[float]] = {}
        """When alerts of each kind were sent in the last hour."""
        self._said: dict[str, float] = {}
        """When each topic was sent."""
        self._held: dict[str, _Held] = {}

    def admit(self, alert: Alert) -> Alert | None:
        """Return the alert if it may be sent, with how many were held back before it. None: it is held back."""
        now = self._clock()
        held = self._held.get(alert.kind)
        if not self._may_send(alert, now):
            since, count = (held.since, held.count) if held else (now, 0)
            self._held[alert.kind] = _Held(count=count + 1, last=alert, since=since)
            return None
        self._note(alert, now)
        if held is None:
            return alert
        del self._held[alert.kind]
        return alert.with_more(f"And {held.count} more like it in the last {duration(now - held.since)}.")

    def due(self) -> list[Alert]:
        """Return the last alert of each kind that was held back and may be sent now."""
        now = self._clock()
        found = []
        for kind, held in list(self._held.items()):
            if self._may_send(held.last, now):
                del self._held[kind]
                self._note(held.last, now)
                more = f"And {held.count - 1} more like it. " if held.count > 1 else ""
                found.append(held.last.with_more(f"{more}This was held back for {duration(now - held.since)}."))
        return found

    def forget(self, topic: str) -> None:
        """A trouble is over, and that was told. If it comes again, that is news."""
        self._said.pop(topic, None)

    def held(self) -> int:
        """How many alerts are held back."""
        return sum(held.count for held in self._held.values())

    def _may_send(self, alert: Alert, now: float) -> bool:
        sent = self._sent.setdefault(alert.kind, deque())
        while sent and now - sent[0] >= HOUR_SECONDS:
            sent.popleft()
        self._said = {topic: at for topic, at in self._said.items() if now - at < HOUR_SECONDS}
        return len(sent) < MOST_PER_HOUR and alert.topic not in self._said

    def _note(self, alert: Alert, now: float) -> None:
        self._sent[alert.kind].append(now)
        self._said[alert.topic] = now
