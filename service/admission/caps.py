"""Limits the rows per repository and per author in one run. Rows above a limit wait for a later run."""

from __future__ import annotations

from collections import Counter

from db.source import SourceRow
from trainer.recipe import Hygiene


class Caps:
    """Counts the rows of one claim. Memory: one counter per repository and author."""

    def __init__(self, hygiene: Hygiene) -> None:
        self._most = {"repository": hygiene.max_rows_per_repository, "author": hygiene.max_rows_per_author}
        self._seen: Counter[tuple[str, str]] = Counter()

    def admit(self, row: SourceRow) -> bool:
        """Count the row and return True if its limits allow it. Rows without repository or author have no limit."""
        named = {"repository": row.repository, "author": row.metadata.get("author")}
        keys = [(kind, str(name).strip().casefold()) for kind, name in named.items() if name and self._most[kind]]
        if any(self._seen[key] >= (self._most[key[0]] or 0) for key in keys):
            return False
        self._seen.update(keys)
        return True
