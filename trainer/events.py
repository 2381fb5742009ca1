"""Writes events.jsonl: one line per event, by rank 0 only. (no torch)"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainer.records import append_event

PROGRESS_SECONDS = 1.0


class Events:
    """The event log of one start of a run."""

    def __init__(self, path: Path, *, enabled: bool = True) -> None:
        self.path = path
        self.enabled = enabled
        self.seconds: dict[str, float] = {}
        """Duration of each ended stage."""
        self._told: dict[str, float] = {}
        """When each stage's progress was last written."""
        if enabled:
            _end_half_line(path)

    def emit(self, event: str, /, **fields: Any) -> None:
        """Append one event."""
        if self.enabled:
            append_event(self.path, event, **fields)

    def progress(self, stage: str, done: int, total: int) -> None:
        """Say how far a stage is, at most once in PROGRESS_SECONDS. Each stage may be told from a thread of its own."""
        now = time.monotonic()
        if now - self._told.setdefault(stage, now) >= PROGRESS_SECONDS:  # what takes no time is not told
            self._told[stage] = now
            self.emit("progress", stage=stage, done=done, total=total)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Emit the start of a stage, and its end unless it fails."""
        self.emit("stage", stage=name, state="begin")
        start = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - start, 3)
        self.emit("stage", stage=name, state="end", seconds=self.seconds[name])


def _end_half_line(path: Path) -> None:
    """End a half-written line of a killed process, so that the next event starts on its own line."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb+") as file:
        file.seek(-1, 2)
        if file.read(1) != b"\n":
            file.write(b"\n")
