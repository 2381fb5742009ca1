"""Writes events.jsonl: one line per event, by rank 0 only. (no torch)"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainer.records import append_event


class Events:
    """The event log of one start of a run."""

    def __init__(self, path: Path, *, enabled: bool = True) -> None:
        self.path = path
        self.enabled = enabled
        self.seconds: dict[str, float] = {}
        """Duration of each ended stage."""
        if enabled:
            _end_half_line(path)

    def emit(self, event: str, /, **fields: Any) -> None:
        """Append one event."""
        if self.enabled:
            append_event(self.path, event, **fields)

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
