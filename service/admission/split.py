"""Chooses held-out rows by a stable hash. Adds whole files if there are too few."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import InitVar, dataclass, field
from typing import Literal

from db.source import HeldOutPlace, SourceRow
from trainer.recipe import Data

Role = Literal["train", "held_out"]


def split_position(row: SourceRow | HeldOutPlace, split: str) -> float:
    """Return a row's stable position in [0, 1), independent of its content. Rows below the fraction are held out.

    A row without repository and path is hashed by its id.
    """
    if split == "repository" and row.repository:
        key = row.repository
    elif row.repository or row.path:
        key = f"{row.repository or ''}\0{row.path or ''}"
    else:
        key = f"\0\0{row.file_id}"
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


@dataclass
class Splitter:
    """Decides rows one by one. Buffers the few rows that a top-up might still hold out.

    All rows of one place (versions and changes of a file) share one role, in this claim and in later ones. With `split:
    repository` there is no top-up: a file from a repository whose other files are trained on would leak.
    Memory: at most `min_held_out` places with their rows, and the positions of earlier top-ups.
    """

    data: Data
    earlier: InitVar[Iterable[HeldOutPlace]] = ()
    """Places that are held out already."""
    held_out: int = 0
    trained: int = 0
    _kept_back: dict[float, list[SourceRow]] = field(default_factory=dict)
    _least_trained: float = math.inf
    """Rows at or above this position are trained on."""
    _crowded: set[float] = field(default_factory=set)
    """Positions whose rows are more than a top-up needs. They are trained on."""
    _topped_up: set[float] = field(default_factory=set)

    def __post_init__(self, earlier: Iterable[HeldOutPlace]) -> None:
        positions = (split_position(place, self.data.split) for place in earlier)
        self._topped_up.update(position for position in positions if position >= self.data.held_out_fraction)

    def add(self, row: SourceRow) -> list[tuple[SourceRow, Role]]:
        """Add a row and return all rows decided by now. The list may be empty, and may hold earlier rows."""
        position = split_position(row, self.data.split)
        if self.holds_out(row):
            self.held_out += 1
            return [(row, "held_out")]
        self.trained += 1
        most = 0 if self.data.split == "repository" else self.data.min_held_out
        if row.trained_texts:  # an earlier text of the row was trained on, so no row of its place is held out
            self._crowded.add(position)
            return [(kept, "train") for kept in (*self._kept_back.pop(position, ()), row)]
        if most == 0 or position >= self._least_trained or position in self._crowded:
            return [(row, "train")]
        self._kept_back.setdefault(position, []).append(row)
        if len(self._kept_back[position]) > most:
            self._crowded.add(position)
        elif len(self._kept_back) > most:
            position = self._least_trained = max(self._kept_back)
        else:
            return []
        return [(row, "train") for row in self._kept_back.pop(position)]

    def holds_out(self, row: SourceRow) -> bool:
        """Whether the row, or another one of its place, is held out as far as decided by now."""
        position = split_position(row, self.data.split)
        return row.held_out or position < self.data.held_out_fraction or position in self._topped_up

    def rest(self) -> list[tuple[SourceRow, Role]]:
        """Decide the buffered rows. The lowest positions are held out until there are enough.

        At least half of the claimed rows stay for training. Each run holds out rows of its own: without them, nothing
        tells whether it learned them.
        """
        missing = max(0, self.data.min_held_out - self.held_out)
        room = (self.held_out + self.trained) // 2 - self.held_out
        decided: list[tuple[SourceRow, Role]] = []
        taken = 0
        for position, rows in sorted(self._kept_back.items(), key=lambda kept: kept[0]):
            taking = taken < missing and taken + len(rows) <= room
            taken += len(rows) * taking
            decided += [(row, "held_out" if taking else "train") for row in rows]
            if taking:
                self._topped_up.add(position)
        self._kept_back = {}
        self.held_out += taken
        self.trained -= taken
        return decided
