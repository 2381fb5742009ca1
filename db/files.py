"""Inserts files into `code_files`, the default source table. A file that is already there is skipped."""

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
from db.table import CHANNEL, Source

INSERT_ROWS = 1000
INSERT_CHARS = 8_000_000
"""A batch is written when its text exceeds this size, so that thousands of large files are never in memory at once."""

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
    """The stage of a curriculum."""
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class BatchResult:
    """The result of one batch of files."""

    inserted: int
    already_there: tuple[str, ...]
    """The paths of the files that were there before."""


@dataclass(frozen=True, kw_only=True)
class _Record:
    """A file as it is written, and the values that identify it."""

    line: str
    """The line that COPY reads."""
    repository: str
    path: str | None
    """None if the file has no path. Such a file is always inserted, because it cannot be identified."""
    is_change: bool
    commit: str | None
    """The commit of a change. If it is None, the record is identified by its text."""
    digest: bytes
    """The sha256 of the text."""


def insert_files(
    pool: Pool, files: Iterable[NewFile], on_batch: Callable[[BatchResult], None] = lambda result: None
) -> int:
    """Insert files into `code_files`, with one transaction for each batch, and notify listeners.

    A file that is already there is skipped, even if several programs insert at once. A file is identified by its
    repository, path and text. A change (its metadata has a `diff`) is identified by its repository, path and commit.
    While a batch is written, the next one is prepared. So at most two batches are in memory.

    Returns:
        the number of inserted files

    Raises:
        ValueError: a text contains a NUL character or half a surrogate pair, which Postgres cannot store. The message
            names the file.
    """
    inserted = 0

    def finish(writing: Future[BatchResult] | None) -> None:
        nonlocal inserted
        if writing:
            result = writing.result()
            inserted += result.inserted
            on_batch(result)

    with ThreadPoolExecutor(1) as writer:
        writing: Future[BatchResult] | None = None
        for batch in _batches(_record(file) for file in files):
            finish(writing)
            writing = writer.submit(_write, pool, batch)
        finish(writing)
    return inserted


def known_paths(pool: Pool, repository: str) -> set[str]:
    """Return the paths of a repository in `code_files`."""
    with pool.transaction(read_only=True) as cursor:
        cursor.execute(QUERIES["files_paths"], {"repository": repository})
        return {path for (path,) in cursor.fetchall()}


def _write(pool: Pool, batch: list[_Record]) -> BatchResult:
    """Insert the records that are not there yet. The lock makes other writers wait until the commit."""
    with pool.transaction() as cursor:
        cursor.execute(QUERIES["files_lock"])
        known = _known(cursor, batch)
        lines = [record.line for number, record in enumerate(batch, 1) if number not in known]
        if lines:
            cursor.copy_expert(QUERIES["files_copy"], io.StringIO("".join(lines)))
            cursor.execute(QUERIES["files_notify"], {"channel": CHANNEL})
    already_there = tuple(batch[number - 1].path or "" for number in sorted(known))
    return BatchResult(inserted=len(lines), already_there=already_there)


def _known(cursor: extensions.cursor, batch: list[_Record]) -> set[int]:
    """Return the positions, from 1, of records that are in the table or occur earlier in the batch."""
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
    cursor.execute(QUERIES["set_seqscan"], {"scan": "off"})
    cursor.execute(Source().statement("files_known"), parameters)
    known.update(number for (number,) in cursor.fetchall())
    cursor.execute(QUERIES["set_seqscan"], {"scan": "on"})
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
    """Convert a file to the text format of COPY, which separates fields with tabs."""
    texts = (file.repository, file.path, file.language, file.content)
    for text in texts:
        if text is not None and ("\x00" in text or not _encodes(text)):
            raise ValueError(
                f"{file.repository}: {file.path!r} contains a NUL character or half a surrogate pair, "
                "which Postgres cannot store. Remove the character"
            )
    is_change = "diff" in file.metadata
    score = None if file.quality_score is None else repr(float(file.quality_score))
    metadata = json.dumps(dict(file.metadata), ensure_ascii=False)  # for the reason, see as_json
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
    """Escape the text of a field. `str.translate` would take twenty times as long."""
    for plain, escape in _ESCAPES:
        text = text.replace(plain, escape)
    return text


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def count_by_phase(pool: Pool) -> dict[str | None, int]:
    """Count the rows of each phase. None: rows without one."""
    with pool.transaction(read_only=True) as cursor:
        cursor.execute(QUERIES["files_by_phase"])
        return dict(cursor.fetchall())
