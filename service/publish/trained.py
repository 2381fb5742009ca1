"""Counts what an adapter was trained on, by language and licence."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from trainer.records import Row, read_outcomes, read_rows
from trainer.run_dir import RunDirectory, RunDirectoryError, read_json


@dataclass(frozen=True, kw_only=True)
class TrainedOn:
    """The trained rows of one language and licence."""

    language: str
    license: str | None
    """As the source table states it. None: it states none, or the run was claimed by a version that did not note it."""
    rows: int
    tokens: int


class Tally:
    """Rows of a run and of its trunk: their hashes, and what was trained."""

    def __init__(self) -> None:
        self.hashes: list[dict[str, Any]] = []
        """Each row of rows.jsonl, whatever became of it."""
        self.replayed: list[dict[str, Any]] = []
        """Each row of replay.jsonl."""
        self._counts: dict[tuple[str, str | None], tuple[int, int]] = {}
        self.replayed_rows = self.replayed_tokens = 0

    def add(self, run: RunDirectory) -> None:
        """Add the rows of one run.

        Raises:
            RunDirectoryError: a file cannot be read. Nothing was added.
        """
        try:
            outcomes = {one.file_id: one for one in read_outcomes(run.rows_outcome)}
            every, again = [*map(_bare, read_rows(kept(run.rows)))], [*map(_bare, read_rows(kept(run.replay)))]
        except (OSError, EOFError, zlib.error, ValueError, TypeError) as error:
            raise RunDirectoryError(f"the rows of {run.root} cannot be read ({error})") from error
        self.replayed += [{"file_id": row.file_id, "sha256": row.sha256} for row in again]
        for row in every:
            self.hashes.append({"file_id": row.file_id, "sha256": row.sha256})
            found = outcomes.get(row.file_id)
            if found is not None and found.outcome == "trained":
                rows, tokens = self._counts.get((row.language, row.license), (0, 0))
                self._counts[row.language, row.license] = (rows + 1, tokens + found.tokens)
        for one in outcomes.values():
            if one.outcome == "replayed":
                self.replayed_rows += 1
                self.replayed_tokens += one.tokens

    def trained(self) -> list[TrainedOn]:
        """Return the counts, the most tokens first."""
        return _sorted(
            TrainedOn(language=language, license=license, rows=rows, tokens=tokens)
            for (language, license), (rows, tokens) in self._counts.items()
        )


def _bare(row: Row) -> Row:
    """The row without its texts: all rows of a run together would not fit into memory."""
    return replace(row, content="", metadata={})


def kept(path: Path) -> Path:
    """Return a row file, or what retention made of it."""
    return path if path.exists() else path.with_name(f"{path.name}.gz")


def as_records(found: Iterable[TrainedOn]) -> list[dict[str, Any]]:
    """Return plain JSON values."""
    return [asdict(one) for one in found]


def with_ancestors(own: Iterable[TrainedOn], parent: Path | None) -> list[TrainedOn] | None:
    """Return what an adapter and all its ancestors were trained on. None: the parent does not say.

    Args:
        parent: folder of the parent adapter. None: the adapter continues from the base.
    """
    if parent is None:
        return list(own)
    try:
        before = [TrainedOn(**record) for record in read_json(parent / "lineage.json")["trained_in_all"]]
    except (OSError, ValueError, KeyError, TypeError):  # an adapter of an earlier version
        return None
    sums: dict[tuple[str, str | None], tuple[int, int]] = {}
    for one in (*before, *own):
        rows, tokens = sums.get((one.language, one.license), (0, 0))
        sums[one.language, one.license] = (rows + one.rows, tokens + one.tokens)
    return _sorted(
        TrainedOn(language=language, license=license, rows=rows, tokens=tokens)
        for (language, license), (rows, tokens) in sums.items()
    )


def from_record(record: Mapping[str, Any]) -> TrainedOn:
    """Return what `as_records` wrote."""
    return TrainedOn(**record)


def _sorted(found: Iterable[TrainedOn]) -> list[TrainedOn]:
    return sorted(found, key=lambda one: (-one.tokens, one.language, one.license or ""))
