"""The source table: check it, count what waits in it, claim from it.

Wherever a `Source` is asked for, one from `check_source` saves a look at the catalogue; any other works too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from db.claim import Claim, HeldOutPlace, HeldOutRow, Role, SourceRow, claim
from db.pool import Pool
from db.table import Eligibility, Source, resolved

__all__ = [
    "Claim",
    "Eligibility",
    "HeldOutPlace",
    "HeldOutRow",
    "Pending",
    "Role",
    "Source",
    "SourceRow",
    "Survey",
    "check_source",
    "claim",
    "is_empty",
    "pending",
    "survey",
]


@dataclass(frozen=True, kw_only=True)
class Pending:
    """What waits among the newest rows, and among the returned ones whose time has come."""

    rows: int
    oldest_age_seconds: float | None
    """None where nothing waits, or where the table does not know when its rows came."""


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What a full sweep found."""

    pending: int
    ineligible: Mapping[str, int]
    """Rows by reason: no_score, low_score, too_short, too_long, no_content."""
    oldest_age_seconds: float | None


def check_source(pool: Pool, source: Source) -> Source:
    """Make sure that the table can be used; returns the source with its optional columns known.

    Raises:
        Misconfigured: the table or needed columns are missing, have wrong types or may not be read.
    """
    with pool.transaction(read_only=True) as cursor:
        source = resolved(cursor, source)
        cursor.execute(source.statement("source_readable"), {})
    return source


def is_empty(pool: Pool, source: Source) -> bool:
    """Whether the table has no row at all."""
    with pool.transaction(read_only=True) as cursor:
        cursor.execute(source.statement("source_is_empty"), {})
        return cursor.fetchone() == (True,)


def pending(
    pool: Pool, source: Source, eligibility: Eligibility, stream: str, *, window_rows: int = 200_000
) -> Pending:
    """Claimable rows among the last `window_rows` ids, and due returned ones. Cheap: for each poll."""
    with pool.transaction(read_only=True) as cursor:
        source = resolved(cursor, source)
        parameters = {"stream": stream, "window_rows": window_rows, **vars(eligibility)}
        cursor.execute(source.statement("source_pending"), parameters)
        row = cursor.fetchone()
    assert row is not None
    return Pending(rows=row[0], oldest_age_seconds=row[1])


def survey(pool: Pool, source: Source, eligibility: Eligibility, stream: str, chunk_rows: int = 50_000) -> Survey:
    """Look at every row of the table, a chunk a transaction: claimable ones and ineligible ones by reason."""
    counts: dict[str, int] = {}
    oldest: float | None = None
    after = -(2**63)
    while True:
        with pool.transaction(read_only=True) as cursor:
            source = resolved(cursor, source)
            chunk = {"after": after, "chunk_rows": chunk_rows}
            cursor.execute(source.statement("source_chunk_end"), chunk)
            end = cursor.fetchone()
            if end is None or end[0] is None:
                break
            parameters = {"stream": stream, "after": after, "until": end[0], **vars(eligibility)}
            cursor.execute(source.statement("source_survey"), parameters)
            for reason, rows, age in cursor.fetchall():
                counts[reason] = counts.get(reason, 0) + rows
                if not reason and age is not None:
                    oldest = max(oldest or 0.0, age)
        after = end[0]
    claimable = counts.pop("", 0)
    return Survey(pending=claimable, ineligible=counts, oldest_age_seconds=oldest)
