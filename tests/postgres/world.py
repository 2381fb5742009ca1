"""Helpers that fill a database and drive a run."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import psycopg2
from psycopg2 import sql

from db import chunks
from db.adapters import NewAdapter
from db.chunks import Pending
from db.files import NewFile, insert_files
from db.lease import Lease
from db.pool import Pool
from db.source import Eligibility, Source, claim

STREAM = "qwen"
ELIGIBLE = Eligibility(quality_threshold=70, min_chars=50, max_chars=8000)
ADAPTER = NewAdapter(folder="v1", manifest_sha256="0" * 64, evaluation={"loss": 1.0})


def execute_outside(url: str, statement: sql.Composed) -> None:
    """Run a statement that cannot run in a transaction."""
    connection = psycopg2.connect(url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(statement)
    connection.close()


def in_database(url: str, name: str) -> str:
    """Return the URL of another database on the same server."""
    return psycopg2.extensions.make_dsn(url, dbname=name)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of a row as the trainer reports it."""

    file_id: int
    outcome: str
    reason: str | None = None
    tokens: int = 10


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def new_file(number: int, **changes: Any) -> NewFile:
    values: dict[str, Any] = {
        "repository": f"owner/repo{number % 3}",
        "path": f"src/file{number}.py",
        "language": "Python",
        "content": f"# {number}\n" + "x = 1\n" * 20,
        "quality_score": 90.0,
    }
    return NewFile(**(values | changes))


def fill(pool: Pool, count: int, **changes: Any) -> None:
    """Add files, even if equal ones exist."""
    with pool.transaction() as cursor:
        cursor.execute("select count(*) from code_files")
        (before,) = cursor.fetchone() or (0,)
    assert insert_files(pool, (new_file(before + n, **changes) for n in range(1, count + 1))) == count


def look_around(
    pool: Pool, lease: Lease, *, source: Source | None = None, eligible: Eligibility = ELIGIBLE,
    interval_seconds: float = 3600.0,
) -> Pending:  # fmt: skip
    """Poll, and read every range that is due."""
    found = chunks.poll(pool, lease, source or Source(), eligible)
    for _ in range(10_000):
        swept = chunks.sweep(pool, lease, source or Source(), eligible, interval_seconds=interval_seconds)
        if swept is None:
            return found
        found = swept
    raise AssertionError("there is always another range that is due")


def claim_all(
    pool: Pool, lease: Lease, *, held_out: tuple[int, ...] = (), parent: int | None = None, limit: int = 1000,
    source: Source | None = None,
) -> tuple[int, list[int]]:  # fmt: skip
    """Claim all waiting rows. Return the run and its files."""
    with claim(pool, lease, source or Source(), ELIGIBLE, limit=limit, parent_version=parent, seed=1) as claimed:
        files = []
        for row in claimed.rows():
            role = "held_out" if row.file_id in held_out or row.held_out else "train"
            claimed.keep(row, role)
            files.append(row.file_id)
        return claimed.run_id, files
