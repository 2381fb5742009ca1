"""Decides which claimed rows enter the run. The cheap rules run first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from db.revocations import revoked
from db.source import Claim, SourceRow
from service.admission.contamination import Benchmarks
from service.admission.duplicates import DUPLICATE, Duplicates
from service.admission.filters import refusal, refused_talk
from service.admission.licences import refused_licence
from service.admission.secrets import metadata_without_secrets, without_secrets
from service.source_files import is_vendored, plain, plain_values
from trainer.conversations import Turn, turns_of
from trainer.recipe import Recipe


class Admission:
    """Applies the admission rules to one claim. Rows arrive in batches, in the order of their ids.

    Raises:
        PreconditionError: a benchmark of the recipe cannot be read.
    """

    def __init__(self, claim: Claim, recipe: Recipe) -> None:
        self._hygiene, self._min_lines = recipe.hygiene, recipe.data.min_context_lines + 1
        self._duplicates = Duplicates(claim, recipe.hygiene)
        self._revoked_ids, self._revoked_texts = revoked(claim.cursor, claim.lease.stream)
        self._benchmarks = Benchmarks(recipe.hygiene.benchmarks, recipe.hygiene.benchmark_gram_words)
        self.secrets: Counter[str] = Counter()
        """Number of replaced secrets by kind."""

    def catch_up(self, beat: Callable[[], None]) -> int:
        """Add the fingerprints that trained and held-out rows lack. Returns the number of such rows."""
        return self._duplicates.catch_up(beat, lambda text: self._clean(text, Counter()))

    def decide(self, rows: Sequence[SourceRow]) -> Iterator[tuple[SourceRow, str | None]]:
        """Yield each row with the reason for its refusal, or None.

        Admitted rows have plain line ends and no byte order mark, and their secrets are replaced. Their hash stays that
        of the source's text.
        """
        rows = [_plain(row) for row in rows]
        reasons = {row.file_id: self._refusal(row) for row in rows}
        passed = [self._cleaned(row) for row in rows if reasons[row.file_id] is None]
        # Compare texts without secrets: for held-out rows, the database may have no other text.
        repeats = self._duplicates.reasons([row for row, _ in passed])
        reasons |= zip((row.file_id for row, _ in passed), repeats, strict=True)
        cleaned = {row.file_id: (row, found) for row, found in passed}
        for row in rows:
            reason = reasons[row.file_id]
            if reason is None:
                row, found = cleaned[row.file_id]
                self.secrets += found
            yield row, reason

    def again(self, row: SourceRow) -> SourceRow | None:
        """Return a row of an earlier run without secrets, or None if it would be refused today.

        It is not compared with other rows, because its own fingerprint is among them.
        """
        row = _plain(row)
        if self._refusal(row) is not None:
            return None
        clean, found = self._cleaned(row)
        self.secrets += found
        return clean

    def _cleaned(self, row: SourceRow) -> tuple[SourceRow, Counter[str]]:
        """Return the row without secrets, and their number by kind. A repository's URL may hold one too."""
        found: Counter[str] = Counter()
        if self._hygiene.secrets == "keep":
            return row, found
        clean = replace(
            row,
            content=self._clean(row.content, found),
            repository=row.repository and self._clean(row.repository, found),
            path=row.path and self._clean(row.path, found),
            metadata=metadata_without_secrets(row.metadata, found),
        )
        return clean, found

    def _clean(self, text: str, found: Counter[str]) -> str:
        return text if self._hygiene.secrets == "keep" else without_secrets(text, found)

    def _refusal(self, row: SourceRow) -> str | None:
        if row.file_id in self._revoked_ids or row.sha256 in self._revoked_texts:
            return "revoked"
        if row.sha256 in row.trained_texts:  # whatever the recipe says of duplicates, nothing is trained on twice
            return DUPLICATE
        turns = turns_of(row.content, row.metadata)
        texts = [row.content, "\n".join(text for text in row.metadata.values() if isinstance(text, str))]
        texts += [turn.text for turn in turns or ()]
        return (
            self._refused_place(row.path)
            or refused_licence(row.license, self._hygiene)
            or self._refused_text(row.content, turns)
            or next((reason for text in texts if (reason := self._benchmarks.reason(text))), None)
        )

    def _refused_place(self, path: str | None) -> str | None:
        is_refused = self._hygiene.vendored == "refuse" and path is not None and is_vendored(path)
        return "vendored" if is_refused else None

    def _refused_text(self, content: str, turns: Sequence[Turn] | None) -> str | None:
        """Judge the text of a file, or the turns of a conversation."""
        if turns is None:
            return refusal(content, self._hygiene, min_lines=self._min_lines)
        return refused_talk((turn.text for turn in turns), self._hygiene)


def _plain(row: SourceRow) -> SourceRow:
    """Return a row as it is trained on, whoever inserted it: with plain line ends and without a byte order mark."""
    return replace(row, content=plain(row.content), metadata=plain_values(row.metadata))
