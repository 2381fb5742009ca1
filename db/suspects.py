"""Which row made a run fail: found by bisection over the runs that follow.

    run 7 fails, 8 rows may be to blame     a b c d e f g h     the group
    run 8 takes half of them, and fails     a b c d             … narrowed to those that it had
    run 9 takes half of those: it is well       c d             a and b are free, c or d it was
    run 10 takes half of those, and fails       c               singled out: quarantined

Rows that nobody suspects are in each of these runs, so that none is tiny. A group gets no larger, and a run that has
fewer of it than the last one ends with fewer suspects, whatever it ends with.
"""

from __future__ import annotations

from collections.abc import Sequence

from psycopg2 import extensions

from db.statements import QUERIES
from db.table import Eligibility, Source


def blame(cursor: extensions.cursor, stream: str, run_id: int, cause: str, file_ids: Sequence[int]) -> int | None:
    """Take in who may have made a run fail, whose rows are still claimed; the row that is singled out, if one is.

    Those that were suspects before the run are so all the more, and the others of their group are let go. One that is
    left is settled as quarantined.
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
    """A run ended well: none of its rows is a suspect any more."""
    cursor.execute(QUERIES["suspects_clear"], {"stream": stream, "run_id": run_id})


def left_alone(cursor: extensions.cursor, stream: str, source: Source, eligibility: Eligibility) -> frozenset[int]:
    """Suspects that a claim does not take, of those that it could: half of the newest group, and all of the others."""
    cursor.execute(source.statement("suspects_waiting"), {"stream": stream, **vars(eligibility)})
    waiting = cursor.fetchall()
    newest = sum(run_id == waiting[0][1] for _, run_id in waiting)
    return frozenset(file_id for file_id, _ in waiting[(newest + 1) // 2 :])
