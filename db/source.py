"""The source table: check it, claim from it (db.chunks counts what waits in it, db.files fills our own).

Wherever a `Source` is asked for, one from `check_source` saves a look at the catalogue; any other works too.
"""

from __future__ import annotations

from db.claim import Claim, Role, claim
from db.pool import Pool
from db.replay import earlier_trained
from db.rows import HeldOutPlace, HeldOutRow, SourceRow
from db.table import Eligibility, Source, resolved

__all__ = [
    "Claim",
    "Eligibility",
    "HeldOutPlace",
    "HeldOutRow",
    "Role",
    "Source",
    "SourceRow",
    "check_source",
    "claim",
    "earlier_trained",
    "is_empty",
]


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
