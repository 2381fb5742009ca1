"""Sends alerts: a thread and a bounded queue for each target, so that one that hangs delays no other and no run."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping

from service.alerts.alert import Alert
from service.alerts.targets import Target
from service.logs import event as log

RETRY_SECONDS = (2.0, 10.0, 30.0, 120.0, 300.0)
"""Waits between the tries of one alert, about eight minutes in all. After the last one it is given up."""
LAST_RETRY_SECONDS = 0.5
"""The wait while the service ends."""
LONGEST_QUEUE = 100
"""Alerts that may wait for one target. The oldest one is dropped for the next."""


class Outbox:
    """All targets. `post` returns at once."""

    def __init__(self, targets: list[Target], show: Callable[[Mapping[str, int]], None]) -> None:
        """`show` gets the number of alerts by what became of them, each time it changes."""
        self._counts: Counter[str] = Counter()
        self._show, self._lock = show, threading.Lock()
        self._lines = [_Line(target, self.count) for target in targets]

    def post(self, alert: Alert) -> None:
        """Queue an alert for each target."""
        for line in self._lines:
            line.put(alert)

    def count(self, outcome: str, number: int = 1) -> None:
        """Count what became of alerts."""
        with self._lock:
            self._counts[outcome] += number
            self._show(dict(self._counts))

    def close(self, seconds: float) -> None:
        """Deliver what waits, for so many seconds at most."""
        deadline = time.monotonic() + seconds
        for line in self._lines:
            line.finish(deadline)
        for line in self._lines:
            line.join(deadline)


class _Line:
    """The queue and the thread of one target."""

    def __init__(self, target: Target, count: Callable[..., None]) -> None:
        self._target, self._count = target, count
        self._queue: deque[Alert] = deque()
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._deadline = float("inf")
        self._sending = False
        self._thread = threading.Thread(target=self._run, name=f"alerts {target.name}", daemon=True)
        self._thread.start()

    def put(self, alert: Alert) -> None:
        with self._changed:
            dropped = len(self._queue) >= LONGEST_QUEUE
            if dropped:
                self._queue.popleft()
            self._queue.append(alert)
            self._changed.notify()
        if dropped:
            self._count("dropped")

    def finish(self, deadline: float) -> None:
        """End once the queue is empty, or at the deadline."""
        with self._changed:
            self._deadline = deadline
            self._closing.set()
            self._changed.notify()

    def join(self, deadline: float) -> None:
        """Wait for the end until the deadline. A send that hangs is left alone: the process ends without it."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        with self._changed:
            left = len(self._queue) + self._sending
            self._queue.clear()
        if left:
            self._count("dropped", left)
            names = {"target": self._target.name, "alerts": left}
            log("Alerts were not delivered before the end", level=logging.WARNING, **names)

    def _run(self) -> None:
        while (alert := self._next()) is not None:
            self._deliver(alert)
            self._sending = False

    def _next(self) -> Alert | None:
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing.is_set())
            if not self._queue or time.monotonic() >= self._deadline:
                return None
            self._sending = True
            return self._queue.popleft()

    def _deliver(self, alert: Alert) -> None:
        waits = iter(RETRY_SECONDS)
        while (refusal := self._target.send(alert)) is not None:
            wait = next(waits, None)
            if wait is None or refusal.is_final or not self._waited(wait):
                self._count("failed")
                names = {"target": self._target.name, "kind": alert.kind, "reason": refusal.reason}
                log("Alert not delivered", level=logging.WARNING, **names)
                return
        self._count("delivered")

    def _waited(self, seconds: float) -> bool:
        """Wait before another try. Returns whether there is time for it."""
        if self._closing.wait(seconds):
            time.sleep(max(0.0, min(LAST_RETRY_SECONDS, self._deadline - time.monotonic())))
        return time.monotonic() < self._deadline
