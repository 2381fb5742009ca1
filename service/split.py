"""Which rows are held out: a stable hash, and whole files more when there are too few."""

from __future__ import annotations

import hashlib
import heapq
from dataclasses import dataclass, field
from typing import Literal

from db.source import SourceRow
from trainer.recipe import Data

Role = Literal["train", "held_out"]


def split_position(row: SourceRow, split: str) -> float:
    """A row's place in [0, 1): the same for ever, whatever its content. Rows below the fraction are held out.

    A row without a repository and path is placed by its id.
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
    """Decides rows one by one, and keeps back the few that a top-up might still take.

    Memory: at most `min_held_out` rows. With `split: repository` there is no top-up: a file taken from a
    repository whose other files are trained on would leak.
    """

    data: Data
    held_out: int = 0
    trained: int = 0
    _kept_back: list[tuple[float, int, SourceRow]] = field(default_factory=list)

    def add(self, row: SourceRow) -> tuple[SourceRow, Role] | None:
        """The row that is now decided (often an earlier one), or None while it is kept back."""
        position = split_position(row, self.data.split)
        if row.held_out or position < self.data.held_out_fraction:
            self.held_out += 1
            return row, "held_out"
        self.trained += 1
        if self.data.split == "repository" or self.data.min_held_out == 0:
            return row, "train"
        entry = (-position, row.file_id, row)
        if len(self._kept_back) < self.data.min_held_out:
            heapq.heappush(self._kept_back, entry)
            return None
        return heapq.heappushpop(self._kept_back, entry)[2], "train"

    def rest(self, earlier_held_out: int) -> list[tuple[SourceRow, Role]]:
        """Decide what was kept back: the lowest of the hash are held out until there are enough.

        At least half of the claimed rows stay for training.
        """
        missing = max(0, self.data.min_held_out - self.held_out - earlier_held_out)
        half = (self.held_out + self.trained) // 2
        take = max(0, min(missing, half - self.held_out))
        by_position = sorted(self._kept_back, key=lambda entry: (-entry[0], entry[1]))
        self._kept_back = []
        self.held_out += min(take, len(by_position))
        self.trained -= min(take, len(by_position))
        return [(entry[2], "held_out" if n < take else "train") for n, entry in enumerate(by_position)]
