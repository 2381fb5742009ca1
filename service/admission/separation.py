"""Finds rows that a run both trained on and was judged by: the same text, or nearly so.

Admission refuses such rows before a claim keeps them. This is a second look, at what the run really read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import islice

from db.fingerprints import Fingerprint
from db.source import SourceRow
from service.admission.duplicates import fingerprints, similarity, text_to_compare
from trainer.recipe import Hygiene
from trainer.records import Row, read_rows
from trainer.run_dir import RunDirectory

BATCH_ROWS = 200


def leaks(
    directory: RunDirectory, judged: Collection[int], hygiene: Hygiene, beat: Callable[[], None] = lambda: None
) -> list[str]:
    """Return a line for each training row that equals or resembles a judged row.

    Args:
        judged: file ids of the rows that the candidate was judged by

    Raises:
        RunDirectoryError: a row file cannot be read.
    """
    known = Judged(row for row in read_rows(directory.held_out) if row.file_id in judged)
    found = []
    for path in (directory.rows, directory.replay):
        rows = read_rows(path)
        while some := list(islice(rows, BATCH_ROWS)):
            beat()
            found += list(known.compared(some, hygiene))
    return found


class Judged:
    """The judged rows by id, by text and by fingerprint."""

    def __init__(self, rows: Iterable[Row]) -> None:
        every = list(rows)
        self.ids = {row.file_id for row in every}
        self.made = dict(zip((row.file_id for row in every), fingerprints(_texts(every)), strict=True))
        self.by_exact = {made.exact: file_id for file_id, made in self.made.items()}
        self.by_band: dict[int, list[int]] = defaultdict(list)
        for file_id, made in self.made.items():
            for band in made.bands:
                self.by_band[band].append(file_id)

    def compared(self, rows: Sequence[Row | SourceRow], hygiene: Hygiene) -> Iterator[str]:
        """Yield a line for each row that must not have been trained on."""
        for row, made in zip(rows, fingerprints(_texts(rows)), strict=True):
            trained = f"file {row.file_id} was trained on"
            if row.file_id in self.ids:
                yield f"{trained}, and it judges"
            elif hygiene.duplicates != "none" and made.exact in self.by_exact:
                yield f"{trained}, and it has the text of file {self.by_exact[made.exact]}, which judges"
            elif hygiene.duplicates == "near" and (near := self._near(made, hygiene.near_duplicate_jaccard)):
                yield f"{trained}, and it resembles file {near}, which judges"

    def _near(self, made: Fingerprint, least: float) -> int | None:
        alike = {file_id for band in made.bands for file_id in self.by_band.get(band, ())}
        return next(
            (one for one in sorted(alike) if similarity(made.signature, self.made[one].signature) >= least), None
        )


def _texts(rows: Sequence[Row | SourceRow]) -> list[str]:
    return [text_to_compare(row.content, row.metadata) for row in rows]
