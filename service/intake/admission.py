"""What of a claim goes into the run: each subject's rules in turn, the cheap ones first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from db.source import Claim, SourceRow
from service.intake.duplicates import Duplicates
from service.intake.filters import refusal
from service.intake.licences import refused_licence
from trainer.recipe import Recipe


class Admission:
    """The rules of one claim. Rows come in batches, in the order of their ids."""

    def __init__(self, claim: Claim, recipe: Recipe) -> None:
        self._hygiene, self._min_lines = recipe.hygiene, recipe.data.min_context_lines + 1
        self.duplicates = Duplicates(claim, recipe.hygiene)

    def decide(self, rows: Sequence[SourceRow]) -> Iterator[tuple[SourceRow, str | None]]:
        """Each row with why it is refused, or None."""
        reasons = {row.file_id: self._refusal(row) for row in rows}
        passed = [row for row in rows if reasons[row.file_id] is None]
        reasons |= zip((row.file_id for row in passed), self.duplicates.reasons(passed), strict=True)
        for row in rows:
            yield row, reasons[row.file_id]

    def _refusal(self, row: SourceRow) -> str | None:
        return refused_licence(row.license, self._hygiene) or refusal(
            row.content, self._hygiene, min_lines=self._min_lines
        )
