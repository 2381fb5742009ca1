"""Reads the held-out files of a stream, for an evaluation outside of a run. Read-only."""

from __future__ import annotations

from collections.abc import Iterator

from db.pool import Pool
from db.rows import HeldOutRow
from db.statements import QUERIES

TEXTS = 50
"""Texts that are in memory at once."""


def read_held_out(pool: Pool, stream: str, *, seed: int, limit: int) -> Iterator[HeldOutRow]:
    """Yield up to `limit` settled held-out files, a file of each run in turn. The order depends on the seed alone."""
    with pool.transaction(isolation="repeatable read", read_only=True) as cursor:
        cursor.execute(QUERIES["held_out_order"], {"stream": stream, "seed": seed, "trunk": []})
        file_ids = [file_id for (file_id,) in cursor.fetchmany(limit)]
        for start in range(0, len(file_ids), TEXTS):
            cursor.execute(QUERIES["held_out_texts"], {"stream": stream, "files": file_ids[start : start + TEXTS]})
            for file_id, repository, path, language, content, sha256, metadata, run_id in cursor.fetchall():
                yield HeldOutRow(
                    file_id=file_id,
                    repository=repository,
                    path=path,
                    language=language,
                    content=content,
                    sha256=sha256,
                    metadata=metadata,
                    run_id=run_id,
                )
