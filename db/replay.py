"""Finds rows that a run can train on again: what the current adapter was trained on, if its text is unchanged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from db.claim import BATCH_ROWS, Claim
from db.rows import BadMetadata, LongName, SourceRow, source_row
from db.statements import QUERIES


def earlier_trained(claim: Claim, seed: str, most: int) -> Iterator[tuple[SourceRow, int]]:
    """Yield rows that the current adapter was trained on, each with its run: one row of each run in turn.

    The order depends on `seed`. A row is passed over if it was deleted, is not eligible any more, or has another text
    than the run recorded. Yields at most about `most` rows.
    """
    parameters: dict[str, Any] = {"stream": claim.lease.stream, "seed": seed}
    claim.cursor.execute(QUERIES["replay_runs"], {**parameters, "limit": most})
    runs = [run_id for (run_id,) in claim.cursor.fetchall()]
    if not runs:
        return
    parameters |= {"runs": runs, "rows_of_run": -(-most // len(runs))}
    candidates = claim.stream("replay_candidates", QUERIES["replay_candidates"], parameters)
    statement = claim.source.statement("source_by_id")
    while batch := list(islice(candidates, min(BATCH_ROWS, claim.most_texts()))):
        files = [file_id for file_id, *_ in batch]
        asked = {"stream": claim.lease.stream, "files": files}
        claim.cursor.execute(statement, asked | claim.eligibility.parameters())
        found = {record[0]: record for record in claim.cursor.fetchall()}
        for file_id, sha256, run_id in batch:
            row = _decoded(found.get(file_id))
            if row is not None and row.sha256 == sha256:
                yield row, run_id


def _decoded(record: Sequence[Any] | None) -> SourceRow | None:
    try:
        return None if record is None else source_row(record)
    except (UnicodeDecodeError, LongName, BadMetadata):  # its producer changed it
        return None
