"""The source table: check it, fill our own, claim from it (db.chunks counts what waits in it).

Wherever a `Source` is asked for, one from `check_source` saves a look at the catalogue; any other works too.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from db.claim import Claim, HeldOutRow, Role, SourceRow, claim
from db.pool import Pool
from db.queries import QUERIES
from db.table import Eligibility, Source, resolved

__all__ = [
    "Claim",
    "Eligibility",
    "HeldOutRow",
    "NewFile",
    "Role",
    "Source",
    "SourceRow",
    "check_source",
    "claim",
    "insert_files",
    "is_empty",
    "known_changes",
    "known_files",
]

INSERT_ROWS = 1000
INSERT_CHARS = 8_000_000
"""A batch ends here too: large files must not lie in memory by the thousand."""
CHANNEL = "codelupe_files"
"""Where the database tells of new files."""

_ESCAPES = (("\\", r"\\"), ("\n", r"\n"), ("\r", r"\r"), ("\t", r"\t"))


@dataclass(frozen=True, kw_only=True)
class NewFile:
    """A file for `code_files`."""

    repository: str | None
    path: str | None
    language: str | None
    content: str
    quality_score: float | None
    license: str | None = None
    commit_sha: str | None = None
    phase: str | None = None
    """A stage of a curriculum."""
    metadata: Mapping[str, Any] = field(default_factory=dict)


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


def insert_files(pool: Pool, files: Iterable[NewFile]) -> int:
    """Add files to `code_files`, a batch a transaction, and tell who listens; returns how many.

    While a batch is written the next one is made, so at most two lie in memory.

    Raises:
        ValueError: a text holds a NUL character or half a surrogate pair, which Postgres cannot store; names
        the file.
    """
    inserted = 0
    with ThreadPoolExecutor(1) as writer:
        writing: Future[int] | None = None
        for batch in _batches(_line(file) for file in files):
            inserted += writing.result() if writing else 0
            writing = writer.submit(_copy, pool, batch)
        return inserted + (writing.result() if writing else 0)


def _copy(pool: Pool, lines: list[str]) -> int:
    with pool.transaction() as cursor:
        cursor.copy_expert(QUERIES["files_copy"], io.StringIO("".join(lines)))
        cursor.execute(QUERIES["files_notify"], {"channel": CHANNEL})
    return len(lines)


def _batches(lines: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    chars = 0
    for line in lines:
        batch.append(line)
        chars += len(line)
        if len(batch) == INSERT_ROWS or chars > INSERT_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


def known_files(pool: Pool, repository: str) -> dict[str, str]:
    """Paths of a repository in `code_files` with the sha256 of their content, the newest one of each path."""
    with pool.transaction(read_only=True) as cursor:
        cursor.execute(Source().statement("files_known"), {"repository": repository})
        return dict(cursor.fetchall())


def known_changes(pool: Pool, repository: str) -> set[tuple[str, str]]:
    """Path and commit of each change of a repository's history in `code_files`."""
    with pool.transaction(read_only=True) as cursor:
        cursor.execute(QUERIES["changes_known"], {"repository": repository})
        return set(cursor.fetchall())


def _line(file: NewFile) -> str:
    """A file as COPY reads it: fields with tabs between them."""
    texts = (file.repository, file.path, file.language, file.content)
    for text in texts:
        if text is not None and ("\x00" in text or not _encodes(text)):
            raise ValueError(
                f"{file.repository}: {file.path!r} holds a NUL character or half a surrogate pair, "
                "which Postgres cannot store"
            )
    score = None if file.quality_score is None else repr(float(file.quality_score))
    fields = (*texts, score, file.license, file.commit_sha, file.phase, json.dumps(dict(file.metadata)))
    return "\t".join(r"\N" if text is None else _escaped(text) for text in fields) + "\n"


def _escaped(text: str) -> str:
    """Text within a field; `str.translate` takes twenty times as long."""
    for plain, escape in _ESCAPES:
        text = text.replace(plain, escape)
    return text


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
