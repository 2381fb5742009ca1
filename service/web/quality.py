"""How good the adapters became, run by run: what no tracker of single runs shows."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from db.history import GREATEST_ID, JudgedRun
from service.web.curves import short

CHUNK_RUNS = 500
"""How many runs one request reads. Earlier ones follow with the next requests."""
MODELS = ("anchor", "current", "candidate")

Read = Callable[[int, int, int], list[JudgedRun]]
"""Returns the newest judged runs between two ids, exclusive, and at most so many."""


class Quality:
    """The measurements of all judged runs. They never change, so each is read once."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._lock = threading.Lock()
        self._points: list[dict[str, Any]] = []
        """Oldest first."""
        self._is_complete = False

    def series(self, most: int) -> dict[str, Any]:
        """Return at most `most` points, oldest first. Raises DatabaseError."""
        with self._lock:
            self._read_newer()
            self._read_older()
            points, complete = list(self._points), self._is_complete
        return {"complete": complete, "runs": len(points), "points": thinned(points, most)}

    def _read_newer(self) -> None:
        newest = self._points[-1]["run"] if self._points else 0
        found = self._read(newest, GREATEST_ID, CHUNK_RUNS)
        if newest and len(found) == CHUNK_RUNS:  # more than fit: begin again with the newest
            self._points, self._is_complete = [], False
        if not newest:
            self._is_complete = len(found) < CHUNK_RUNS
        self._points += [point_of(run) for run in reversed(found)]

    def _read_older(self) -> None:
        if self._is_complete or not self._points:
            return
        found = self._read(0, self._points[0]["run"], CHUNK_RUNS)
        self._points = [point_of(run) for run in reversed(found)] + self._points
        self._is_complete = len(found) < CHUNK_RUNS


def point_of(run: JudgedRun) -> dict[str, Any]:
    """Return the numbers of a run by name, such as candidate, earlier.candidate, fim.anchor or suite.humaneval."""
    values: dict[str, float] = {}
    _add(values, "", run.evaluation or {}, lambda score: (score or {}).get("loss"))
    quality = run.quality or {}
    for name, losses in (quality.get("slices") or {}).items():
        _add(values, f"{name}.", losses, lambda loss: loss)
    for name, solved in (quality.get("suites") or {}).items():
        _add(values, f"suite.{name}.", solved, lambda rate: rate)
    return {"run": run.run_id, "state": run.state, "ended_at": run.ended_at, "values": values}


def _add(values: dict[str, float], prefix: str, by_model: Mapping[str, Any], of: Callable[[Any], Any]) -> None:
    for model in MODELS:
        value = of(by_model.get(model))
        if isinstance(value, int | float) and math.isfinite(value):
            values[f"{prefix}{model}"] = short(value)


def thinned(points: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """Return at most `most` points: each is the last run of its neighbours, with the mean of their numbers."""
    size = max(1, math.ceil(len(points) / most))
    return [_mean(points[start : start + size]) for start in range(0, len(points), size)]


def _mean(group: list[dict[str, Any]]) -> dict[str, Any]:
    if len(group) == 1:
        return group[0]
    names: Iterable[str] = dict.fromkeys(name for point in group for name in point["values"])
    values = {}
    for name in names:
        found = [point["values"][name] for point in group if name in point["values"]]
        values[name] = short(sum(found) / len(found))
    return {**group[-1], "runs": len(group), "values": values}
