"""Finds the row that made a run fail, by bisection over the following runs.

    run 7 fails, any of 8 rows may be the cause     a b c d e f g h     all 8 become suspects
    run 8 claims half of them, and fails            a b c d             only these remain suspects
    run 9 claims half of those, and succeeds        a b                 c and d remain suspects
    run 10 claims half of those, and fails              c               c is quarantined

Each of these runs also claims other rows, so that no run is tiny. A group of suspects never grows. A run that has only
some of the suspects leaves fewer suspects, whether it fails or succeeds.
"""

from __future__ import annotations

from collections.abc import Sequence

from psycopg2 import extensions

from db.statements import QUERIES
from db.table import Eligibility, Source


def blame(cursor: extensions.cursor, stream: str, run_id: int, cause: str, file_ids: Sequence[int]) -> int | None:
    """Record the rows that may have made a run fail. Call this while the run's rows are still claimed.

    If some of the rows were suspects before the run, only those remain suspects, and the rest of their group is
    cleared. If a single row remains, it is settled as quarantined.

    Returns:
        the id of the quarantined row, or None
    """
    if not file_ids:
        return None
    parameters = {"stream": stream, "run_id": run_id, "file_ids": list(file_ids)}
    cursor.execute(QUERIES["suspects_of_run"], parameters)
    found = cursor.fetchall()
    again = [file_id for file_id, before in found if before]
    named = again or [file_id for file_id, _ in found]
    cursor.execute(QUERIES["suspects_release"], {**parameters, "file_ids": named})
    if len(named) != 1:
        cursor.execute(QUERIES["suspects_mark"], {**parameters, "file_ids": named})
        return None
    single = {**parameters, "file_id": named[0], "reason": cause}
    cursor.execute(QUERIES["ledger_quarantine"], single)
    cursor.execute(QUERIES["run_row_quarantine"], single)
    return int(named[0])


def clear(cursor: extensions.cursor, stream: str, run_id: int) -> None:
    """Clear all suspects among the rows of a successful run."""
    cursor.execute(QUERIES["suspects_clear"], {"stream": stream, "run_id": run_id})


def excluded_suspects(
    cursor: extensions.cursor, stream: str, source: Source, eligibility: Eligibility
) -> frozenset[int]:
    """The suspects that a claim must leave for a later run: half of the newest group, and all other groups."""
    cursor.execute(source.statement("suspects_waiting"), {"stream": stream, **eligibility.parameters()})
    waiting = cursor.fetchall()
    newest = sum(run_id == waiting[0][1] for _, run_id in waiting)
    return frozenset(file_id for file_id, _ in waiting[(newest + 1) // 2 :])
