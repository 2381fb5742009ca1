"""A run's curves from its events: down-sampled here, so that a page never gets more points than it can draw."""

from __future__ import annotations

import json
import math
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from service.settings.home import Home
from service.web.files import read_part

MAX_POINTS = 600
"""A curve is halved when it has twice as many points."""
BUDGET_BYTES = 1_500_000
"""How much of an events file one request reads. A longer file is ready after a few requests."""
LONGEST_LINE = 16_000_000
"""Bytes. A longer line is passed over."""
RUNS_KEPT = 48
"""Runs whose curves stay in memory. One that is not read to its end yet stays longer than one that is."""

STEP_FIELDS = {
    "loss": "train_loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "tokens_per_second": "tokens_per_second",
    "gpu_memory_bytes": "gpu_memory_bytes",
    "aux_loss": "aux_loss",
}
"""The curve of each field of the event `step`."""


@dataclass
class Point:
    """A few neighbouring values as one."""

    step: int
    """The last step among them."""
    mean: float
    least: float
    most: float
    count: int = 1

    def merged(self, other: Point) -> Point:
        """Return this point and a later one as one."""
        count = self.count + other.count
        mean = self.mean + (other.mean - self.mean) * other.count / count
        return Point(other.step, mean, min(self.least, other.least), max(self.most, other.most), count)


def short(value: float) -> float:
    """Return a number with six digits: more cannot be seen, and would double the answer."""
    return float(f"{value:.6g}")


@dataclass
class Curve:
    """One curve. Its points cover equally many values, except the last one."""

    points: list[Point] = field(default_factory=list)
    width: int = 1
    """Values in each full point."""

    def add(self, step: int, value: float) -> None:
        """Append a value. Steps only grow."""
        if self.points and step < self.points[-1].step:
            return
        new = Point(step, value, value, value)
        if self.points and self.points[-1].count < self.width:
            self.points[-1] = self.points[-1].merged(new)
            return
        if len(self.points) >= 2 * MAX_POINTS:
            self.points = [
                first.merged(second) for first, second in zip(self.points[::2], self.points[1::2], strict=True)
            ]
            self.width *= 2
        self.points.append(new)

    def cut_after(self, step: int) -> None:
        """Forget what came after a step: a resumed training repeats it."""
        while self.points and self.points[-1].step > step:
            self.points.pop()

    def sampled(self, most: int) -> list[list[float]]:
        """Return at most `most` points as [step, mean, least, most]."""
        size = max(1, math.ceil(len(self.points) / most))
        found = []
        for start in range(0, len(self.points), size):
            point, *rest = self.points[start : start + size]
            for later in rest:
                point = point.merged(later)
            found.append([point.step, *(short(value) for value in (point.mean, point.least, point.most))])
        return found


class RunCurves:
    """The curves of one run. Reads its events as they are written."""

    def __init__(self, events: Path) -> None:
        self._events = events
        self._offset = 0
        self._lock = threading.Lock()
        self.curves: dict[str, Curve] = {}
        self.lines: dict[str, float] = {}
        """Losses of anchor and current adapter before the first step, on the same files as the curve eval_loss."""
        self.experts: list[dict[str, Any]] = []
        """The use of a mixture's experts: the latest intervals."""
        self.is_complete = False
        """Whether everything that is written so far has been read."""

    def advance(self) -> None:
        """Read on, but not more than BUDGET_BYTES."""
        with self._lock:
            try:
                data = self._next_bytes()
            except OSError:
                data = b""
            self.is_complete = len(data) < BUDGET_BYTES
            whole = data[: data.rfind(b"\n") + 1]
            for line in whole.splitlines():
                self._read(line)
            self._offset += len(whole)

    def _next_bytes(self) -> bytes:
        data, size = read_part(self._events, self._offset, BUDGET_BYTES)
        if size < self._offset:  # another file: the run was trained again from its beginning
            self._begin_anew()
            data, size = read_part(self._events, 0, BUDGET_BYTES)
        if b"\n" in data or len(data) < BUDGET_BYTES:
            return data
        data, _ = read_part(self._events, self._offset, LONGEST_LINE)  # one line is longer than that
        if b"\n" not in data:
            if len(data) == LONGEST_LINE:
                self._offset += LONGEST_LINE
            return b""
        return data

    def _begin_anew(self) -> None:
        self._offset = 0
        self.curves, self.lines, self.experts = {}, {}, []

    def _read(self, line: bytes) -> None:
        try:
            event = json.loads(line)
            handler = HANDLERS.get(event["event"]) if isinstance(event, dict) else None
            if handler is not None:
                handler(self, event)
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):  # a damaged line, such as half of one
            return

    def _add(self, name: str, step: Any, value: Any) -> None:
        if isinstance(value, int | float) and isinstance(step, int) and math.isfinite(value):
            self.curves.setdefault(name, Curve()).add(step, float(value))

    def _started(self, event: Mapping[str, Any]) -> None:
        resumed = event.get("resumed_from_step")
        for curve in self.curves.values():
            curve.cut_after(resumed if isinstance(resumed, int) else -1)

    def _step(self, event: Mapping[str, Any]) -> None:
        for name, curve in STEP_FIELDS.items():
            self._add(curve, event.get("step"), event.get(name))

    def _evaluation(self, event: Mapping[str, Any]) -> None:
        which, loss = event.get("which"), event.get("loss")
        if event.get("part") == "judging":
            return
        if which == "candidate":
            self._add("eval_loss", event.get("step"), loss)
            self._add("token_accuracy", event.get("step"), event.get("token_accuracy"))
        elif isinstance(loss, int | float) and math.isfinite(loss):
            self.lines[str(which)] = float(loss)

    def _experts(self, event: Mapping[str, Any]) -> None:
        kept = {name: event.get(name) for name in ("step", "top_k", "layers", "aux_loss")}
        self.experts = [*self.experts[-19:], kept]

    def as_record(self, points: int) -> dict[str, Any]:
        """Return at most `points` points of each curve."""
        with self._lock:
            return {
                "complete": self.is_complete,
                "curves": {name: curve.sampled(points) for name, curve in self.curves.items()},
                "lines": dict(self.lines),
                "experts": list(self.experts),
            }


HANDLERS = {
    "started": RunCurves._started,
    "step": RunCurves._step,
    "evaluation": RunCurves._evaluation,
    "experts": RunCurves._experts,
}


class Curves:
    """The curves of the runs that somebody looks at."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._runs: OrderedDict[int, RunCurves] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, run_id: int, *, points: int = MAX_POINTS) -> dict[str, Any]:
        """Return the curves of a run. There are none if it has no events, or if they were removed."""
        with self._lock:
            found = self._runs.setdefault(run_id, RunCurves(self._home.run(run_id).events))
            self._runs.move_to_end(run_id)
            if len(self._runs) > RUNS_KEPT:
                complete = (number for number, curves in self._runs.items() if curves.is_complete)
                self._runs.pop(next(complete, next(iter(self._runs))))
        found.advance()
        return found.as_record(points)
