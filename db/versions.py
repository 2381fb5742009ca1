"""Finds rows whose text changed after they were settled, and returns them as a new version of the row.

    id 7  text A  claimed ─▶ trained by run 3
    id 7  text B  (upsert, restored dump, reused id)   ledger: version 1, returned     superseded: version 0, trained
    id 7  text B  claimed ─▶ trained by run 9          ledger: version 1, trained

A look at a range compares marks, which is cheap (db/table.py). Only texts whose mark differs are compared by hash.
Marks of a view or a foreign table do not show every change, so there each look also compares some texts, in turn.

Not found: a text that changed and was changed back between two looks. Found late: a text that changed while a run had
the row, or while the row was part of the trunk. It is compared after the verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg2 import extensions
from psycopg2.extras import execute_values

from db.statements import QUERIES
from db.table import Source

COMPARED_ROWS, COMPARED_BYTES = 2_000, 16_000_000
"""The texts that one look compares by hash. The rest is compared in the next looks."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The result of a comparison."""

    changed: int
    """Rows that were returned as a new version."""
    last_id: int | None
    """The last row that was compared. None if there was nothing to compare."""
    is_complete: bool
    """Whether all rows were compared."""


def compare(
    cursor: extensions.cursor, source: Source, stream: str, first_id: int, last_id: int, *, every: bool
) -> Compared:
    """Compare the texts of settled rows of a range with the texts that were settled, by hash.

    Args:
        every: compare all texts, not only those whose mark differs
    """
    parameters = {
        "stream": stream, "first_id": first_id, "last_id": last_id, "every": every,
        "rows": COMPARED_ROWS, "bytes": COMPARED_BYTES,
    }  # fmt: skip
    cursor.execute(source.statement("source_settled"), parameters)
    found: Sequence[tuple[int, int | None, bool, int]] = cursor.fetchall()
    _store_marks(cursor, stream, {file_id: mark for file_id, mark, same, _ in found if same})
    changed = [file_id for file_id, _, same, _ in found if not same]
    _supersede(cursor, stream, changed)
    if not found:
        return Compared(changed=0, last_id=None, is_complete=True)
    return Compared(changed=len(changed), last_id=found[-1][0], is_complete=len(found) == found[0][3])


def _store_marks(cursor: extensions.cursor, stream: str, marks: Mapping[int, int | None]) -> None:
    records = [(stream, file_id, mark) for file_id, mark in marks.items()]
    if records:
        template = "(%s, cast(%s as bigint), cast(%s as bigint))"
        execute_values(cursor, QUERIES["ledger_mark"], records, template=template, page_size=len(records))


def _supersede(cursor: extensions.cursor, stream: str, files: list[int]) -> None:
    """Return rows as a new version."""
    parameters: dict[str, Any] = {"stream": stream, "files": files}
    if files:
        for name in ("supersede_record", "supersede_forget", "supersede_return"):
            cursor.execute(QUERIES[name], parameters)
