"""What of a claim goes into the run: each subject's rules in turn, the cheap ones first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from db.revocations import revoked
from db.source import Claim, SourceRow
from service.intake.contamination import Benchmarks
from service.intake.duplicates import Duplicates
from service.intake.filters import refusal
from service.intake.licences import refused_licence
from service.intake.secrets import metadata_without_secrets, without_secrets
from trainer.recipe import Recipe


class Admission:
    """The rules of one claim. Rows come in batches, in the order of their ids.

    Raises:
        PreconditionError: a benchmark of the recipe cannot be read.
    """

    def __init__(self, claim: Claim, recipe: Recipe) -> None:
        self._hygiene, self._min_lines = recipe.hygiene, recipe.data.min_context_lines + 1
        self.duplicates = Duplicates(claim, recipe.hygiene)
        self._revoked_ids, self._revoked_texts = revoked(claim.cursor, claim.lease.stream)
        self._benchmarks = Benchmarks(recipe.hygiene.benchmarks, recipe.hygiene.benchmark_gram_words)
        self.secrets: Counter[str] = Counter()
        """Secrets that were replaced, by kind."""

    def decide(self, rows: Sequence[SourceRow]) -> Iterator[tuple[SourceRow, str | None]]:
        """Each row with why it is refused, or None: then it is as it may be written, its secrets replaced."""
        reasons = {row.file_id: self._refusal(row) for row in rows}
        passed = [row for row in rows if reasons[row.file_id] is None]
        reasons |= zip((row.file_id for row in passed), self.duplicates.reasons(passed), strict=True)
        for row in rows:
            reason = reasons[row.file_id]
            yield (row if reason else self._clean(row)), reason

    def _clean(self, row: SourceRow) -> SourceRow:
        if self._hygiene.secrets == "keep":
            return row
        content = without_secrets(row.content, self.secrets)
        return replace(row, content=content, metadata=metadata_without_secrets(row.metadata, self.secrets))

    def _refusal(self, row: SourceRow) -> str | None:
        if row.file_id in self._revoked_ids or row.sha256 in self._revoked_texts:
            return "revoked"
        return (
            refused_licence(row.license, self._hygiene)
            or refusal(row.content, self._hygiene, min_lines=self._min_lines)
            or self._benchmarks.reason(row.content)
        )
