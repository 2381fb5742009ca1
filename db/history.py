"""Reads earlier runs and rows for the page and /api/v1: in pages, without reports and without texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg2 import extensions

from db.pool import Pool
from db.statements import QUERIES
from db.table import Source, resolved

GREATEST_ID = 2**63 - 1
SHOWN_BYTES, MOST_BYTES = 100_000, 20_000_000


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """One run of a list."""

    run_id: int
    state: str
    phase: str | None
    reason: str | None
    parent_version: int | None
    published_in: int | None
    launches: int
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    anchor_loss: float | None
    """Held-out losses of the base, the current adapter and the candidate, in nats per token."""
    current_loss: float | None
    candidate_loss: float | None


@dataclass(frozen=True, kw_only=True)
class JudgedRun:
    """What an ended run with a report measured."""

    run_id: int
    state: str
    ended_at: datetime
    evaluation: dict[str, Any] | None
    quality: dict[str, Any] | None
    """The verdict's `quality`: losses by slice and pass@1 by suite. None in reports of earlier versions."""


@dataclass(frozen=True, kw_only=True)
class RunFile:
    """A file of a run."""

    file_id: int
    role: str
    """train, held_out or replay"""
    outcome: str | None
    """None: the run is in progress."""
    tokens: int | None
    disposition: str | None
    """Where the file stands now. None: a later run claimed it."""
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class LedgerRow:
    """Where a row stands."""

    file_id: int
    disposition: str
    reason: str | None
    run_id: int
    version: int
    attempts: int
    settled_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class RowText:
    """A row of the source, with its text. Bytes that are not UTF-8 are shown as U+FFFD."""

    repository: str | None
    path: str | None
    language: str | None
    quality_score: str | None
    content_bytes: int | None
    """The size of the whole text."""
    content: str | None
    """The first SHOWN_BYTES of the text. None: there is none, or it has more than MOST_BYTES."""


def runs(pool: Pool, stream: str, *, before: int | None, limit: int) -> list[RunSummary]:
    """List runs, newest first.

    Args:
        before: only runs with lower ids
    """
    names = tuple(RunSummary.__dataclass_fields__)
    rows = _fetch(pool, "history_runs", {"stream": stream, "before": before, "limit": limit})
    return [RunSummary(**dict(zip(names, row, strict=True))) for row in rows]


def judged(pool: Pool, stream: str, *, after: int, before: int, limit: int) -> list[JudgedRun]:
    """List ended runs with reports, newest first, whose ids are between `after` and `before`."""
    parameters = {"stream": stream, "after": after, "before": before, "limit": limit}
    names = tuple(JudgedRun.__dataclass_fields__)
    return [JudgedRun(**dict(zip(names, row, strict=True))) for row in _fetch(pool, "history_quality", parameters)]


def files(pool: Pool, stream: str, run_id: int, *, after: int, limit: int) -> list[RunFile]:
    """List the files of a run by id, those after `after`."""
    names = tuple(RunFile.__dataclass_fields__)
    parameters = {"stream": stream, "run_id": run_id, "after": after, "limit": limit}
    return [RunFile(**dict(zip(names, row, strict=True))) for row in _fetch(pool, "history_files", parameters)]


def file_counts(pool: Pool, run_id: int) -> dict[str, dict[str, int]]:
    """Count the files of a run by role and outcome."""
    counts: dict[str, dict[str, int]] = {}
    for role, outcome, count in _fetch(pool, "history_file_counts", {"run_id": run_id}):
        counts.setdefault(role, {})[outcome] = count
    return counts


def rows(pool: Pool, stream: str, disposition: str, *, reason: str | None, before: int, limit: int) -> list[LedgerRow]:
    """List the rows of a disposition, the highest ids first."""
    names = tuple(LedgerRow.__dataclass_fields__)
    parameters = {
        "stream": stream, "disposition": disposition, "reason": reason, "before": before, "limit": limit,
    }  # fmt: skip
    return [LedgerRow(**dict(zip(names, row, strict=True))) for row in _fetch(pool, "history_rows", parameters)]


def row(pool: Pool, stream: str, file_id: int) -> LedgerRow | None:
    """Return where a row stands, or None if no run has claimed it."""
    names = tuple(LedgerRow.__dataclass_fields__)
    found = _fetch(pool, "history_row", {"stream": stream, "file_id": file_id})
    return LedgerRow(**dict(zip(names, found[0], strict=True))) if found else None


def text(pool: Pool, source: Source, file_id: int) -> RowText | None:
    """Return a row of the source with its text, or None if it does not exist."""
    parameters = {"file_id": file_id, "bytes": SHOWN_BYTES, "most_bytes": MOST_BYTES}
    with pool.transaction(read_only=True) as cursor:
        _limit(cursor)
        cursor.execute(resolved(cursor, source).statement("history_text"), parameters)
        found = cursor.fetchone()
    if found is None:
        return None
    repository, path, language, score, size, content = found
    return RowText(
        repository=_shown(repository), path=_shown(path), language=_shown(language), quality_score=score,
        content_bytes=size, content=_shown(content),
    )  # fmt: skip


def _shown(value: Any) -> str | None:
    return None if value is None else bytes(value).decode(errors="replace")


def _fetch(pool: Pool, name: str, parameters: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    with pool.transaction(read_only=True) as cursor:
        _limit(cursor)
        cursor.execute(QUERIES[name], dict(parameters))
        return list(cursor.fetchall())


def _limit(cursor: extensions.cursor) -> None:
    cursor.execute(QUERIES["history_limit"])
