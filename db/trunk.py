"""The trunk: a candidate that was neither published nor refused, on which the next runs train on.

    version 7 ──▶ run 8 inconclusive ──▶ run 9 inconclusive ──▶ run 10
                  └─────────── the trunk ───────────┘           published: the rows of 8, 9 and 10 are trained
                                                                refused: the rows of 8, 9 and 10 are returned

All runs of a trunk have the same parent version. If another version becomes current, the trunk is given up.
"""

from __future__ import annotations

from dataclasses import dataclass

from psycopg2 import extensions

from db.errors import ParentMoved
from db.lease import Lease, fence
from db.pool import Pool
from db.statements import QUERIES


@dataclass(frozen=True, kw_only=True)
class Trunk:
    """The inconclusive runs since the last publication."""

    run_ids: tuple[int, ...]
    """Oldest first; at least one. The last one's candidate is what the next run trains on."""
    parent_version: int | None
    """The published version that the oldest run was trained on from."""

    @property
    def head(self) -> int:
        """The run whose candidate the next run trains on."""
        return self.run_ids[-1]


def trunk(pool: Pool, stream: str) -> Trunk | None:
    """Return the stream's trunk, or None."""
    with pool.transaction(read_only=True) as cursor:
        cursor.execute(QUERIES["trunk_get"], {"stream": stream})
        found = cursor.fetchall()
    if not found:
        return None
    return Trunk(run_ids=tuple(run_id for run_id, _ in found), parent_version=found[-1][1])


def give_up(pool: Pool, lease: Lease) -> int:
    """Give the trunk up: its rows are returned, and no attempt is counted. Returns the number of rows.

    Call this when the trunk cannot be trained on any more, because another version is current or its files are gone.
    """
    with pool.transaction() as cursor:
        fence(cursor, lease)
        return return_rows(cursor, lease.stream)


# --- inside a verdict's transaction -------------------------------------------------------------------------


def is_start_of(cursor: extensions.cursor, stream: str, run_id: int) -> bool:
    """Whether the run was trained on from the present trunk."""
    started_from, head = _start_and_head(cursor, stream, run_id)
    return head is not None and started_from == head


def check_head(cursor: extensions.cursor, stream: str, run_id: int) -> None:
    """Check that the run was trained on from the present trunk, or from none if there is none.

    Raises:
        ParentMoved: the trunk was given up meanwhile.
    """
    started_from, head = _start_and_head(cursor, stream, run_id)
    if started_from != head:
        raise ParentMoved(
            f"run {run_id} started from the open candidate of run {started_from or '(none)'}, and that of run "
            f"{head or '(none)'} is open now"
        )


def _start_and_head(cursor: extensions.cursor, stream: str, run_id: int) -> tuple[int | None, int | None]:
    cursor.execute(QUERIES["trunk_of_run"], {"stream": stream, "run_id": run_id})
    row = cursor.fetchone()
    assert row is not None
    return row[0], row[1]


def add(cursor: extensions.cursor, stream: str, run_id: int) -> None:
    """Add an inconclusive run."""
    cursor.execute(QUERIES["trunk_add"], {"stream": stream, "run_id": run_id})


def publish(cursor: extensions.cursor, stream: str, version: int) -> None:
    """Settle the trunk's rows as trained: they are part of the published version."""
    cursor.execute(QUERIES["trunk_publish_runs"], {"stream": stream, "version": version})
    cursor.execute(QUERIES["trunk_publish_rows"], {"stream": stream})
    cursor.execute(QUERIES["trunk_clear"], {"stream": stream})


def refuse(cursor: extensions.cursor, stream: str, *, max_attempts: int, backoff_seconds: float) -> None:
    """Settle the trunk's rows like those of a refused candidate."""
    cursor.execute(
        QUERIES["trunk_refuse_rows"],
        {"stream": stream, "max_attempts": max_attempts, "backoff_seconds": backoff_seconds},
    )
    cursor.execute(QUERIES["trunk_clear"], {"stream": stream})


def return_rows(cursor: extensions.cursor, stream: str) -> int:
    """Return the trunk's rows without counting an attempt, and remove the trunk."""
    cursor.execute(QUERIES["trunk_return_rows"], {"stream": stream})
    returned = cursor.rowcount
    cursor.execute(QUERIES["trunk_clear"], {"stream": stream})
    return returned


def revoked(cursor: extensions.cursor, stream: str) -> list[int]:
    """Return the rows of the trunk that were revoked."""
    cursor.execute(QUERIES["trunk_revoked"], {"stream": stream})
    return [file_id for (file_id,) in cursor.fetchall()]
