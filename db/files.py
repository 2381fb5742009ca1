"""New files for `code_files`, our own source table: each once, however often it is given."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from psycopg2 import extensions

from db.pool import Pool
from db.statements import QUERIES
from db.table import Source

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


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a batch of files came to."""

    inserted: int
    already_there: int


@dataclass(frozen=True, kw_only=True)
class _Record:
    """A file as it is written, and what tells it from others."""

    line: str
    """What COPY reads."""
    repository: str
    path: str | None
    """None: it has no place, so that nothing says whether it is there."""
    is_change: bool
    commit: str | None
    """What a change is known by, where it says so; all else is known by its text."""
    digest: bytes
    """sha256 of the text."""


def insert_files(
    pool: Pool, files: Iterable[NewFile], on_batch: Callable[[Written], None] = lambda written: None
) -> int:
    """Add files to `code_files`, a batch a transaction, and tell who listens; returns how many were added.

    Passed over is what is there already, with any number of programs adding at once: a file by repository, path and
    text; a change (its metadata has a `diff`) by repository, path and commit. While a batch is written the next one is
    made, so at most two lie in memory, and nothing else is kept.

    Raises:
        ValueError: a text holds a NUL character or half a surrogate pair, which Postgres cannot store; names
        the file.
    """
    inserted = 0

    def done(writing: Future[Written] | None) -> None:
        nonlocal inserted
        if writing:
            written = writing.result()
            inserted += written.inserted
            on_batch(written)

    with ThreadPoolExecutor(1) as writer:
        writing: Future[Written] | None = None
        for batch in _batches(_record(file) for file in files):
            done(writing)
            writing = writer.submit(_write, pool, batch)
        done(writing)
    return inserted


def known_paths(pool: Pool, repository: str) -> set[str]:
    """Paths of a repository in `code_files`."""
    with pool.transaction(read_only=True) as cursor:
        cursor.execute(QUERIES["files_paths"], {"repository": repository})
        return {path for (path,) in cursor.fetchall()}


def _write(pool: Pool, batch: list[_Record]) -> Written:
    """Add what is not there; who else adds waits from the look until the commit."""
    with pool.transaction() as cursor:
        cursor.execute(QUERIES["files_lock"])
        known = _known(cursor, batch)
        lines = [record.line for number, record in enumerate(batch, 1) if number not in known]
        if lines:
            cursor.copy_expert(QUERIES["files_copy"], io.StringIO("".join(lines)))
            cursor.execute(QUERIES["files_notify"], {"channel": CHANNEL})
    return Written(inserted=len(lines), already_there=len(batch) - len(lines))


def _known(cursor: extensions.cursor, batch: list[_Record]) -> set[int]:
    """Numbers, from 1, of the records that the table or the batch itself has already."""
    seen: set[tuple[str, str, bool, str | bytes]] = set()
    known: set[int] = set()
    for number, record in enumerate(batch, 1):
        if record.path is not None:
            identity = (record.repository, record.path, record.is_change, record.commit or record.digest)
            if identity in seen:
                known.add(number)
            seen.add(identity)
    parameters = {
        "repositories": [record.repository for record in batch],
        "paths": [record.path for record in batch],
        "changes": [record.is_change for record in batch],
        "commits": [record.commit for record in batch],
        "digests": [record.digest for record in batch],
    }
    cursor.execute(QUERIES["by_index"], {"scan": "off"})
    cursor.execute(Source().statement("files_known"), parameters)
    known.update(number for (number,) in cursor.fetchall())
    cursor.execute(QUERIES["by_index"], {"scan": "on"})
    return known


def _batches(records: Iterable[_Record]) -> Iterator[list[_Record]]:
    batch: list[_Record] = []
    chars = 0
    for record in records:
        batch.append(record)
        chars += len(record.line)
        if len(batch) == INSERT_ROWS or chars > INSERT_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


def _record(file: NewFile) -> _Record:
    """A file as COPY reads it: fields with tabs between them."""
    texts = (file.repository, file.path, file.language, file.content)
    for text in texts:
        if text is not None and ("\x00" in text or not _encodes(text)):
            raise ValueError(
                f"{file.repository}: {file.path!r} holds a NUL character or half a surrogate pair, "
                "which Postgres cannot store"
            )
    is_change = "diff" in file.metadata
    score = None if file.quality_score is None else repr(float(file.quality_score))
    metadata = json.dumps(dict(file.metadata), ensure_ascii=False)  # as_json says why
    fields = (*texts, score, file.license, file.commit_sha, file.phase, metadata)
    return _Record(
        line="\t".join(r"\N" if text is None else _escaped(text) for text in fields) + "\n",
        repository=file.repository or "",
        path=file.path,
        is_change=is_change,
        commit=(file.commit_sha or None) if is_change else None,
        digest=hashlib.sha256(file.content.encode()).digest(),
    )


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
