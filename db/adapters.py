"""Reads and writes the published adapters of a stream, and makes an earlier version current again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg2 import extensions

from db.errors import DatabaseError
from db.pool import Pool
from db.statements import QUERIES, as_json


@dataclass(frozen=True, kw_only=True)
class NewAdapter:
    """An adapter that is about to be published."""

    folder: str
    """The folder of the verified copy."""
    manifest_sha256: str
    evaluation: Mapping[str, Any]
    """The measurements behind the verdict, as plain JSON values."""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A published adapter."""

    version: int
    """The id of the run that trained the adapter."""
    stream: str
    parent_version: int | None
    folder: str
    manifest_sha256: str
    evaluation: dict[str, Any]
    published_at: datetime
    is_current: bool


def current(pool: Pool, stream: str) -> Adapter | None:
    """Return the current adapter of the stream, or None before the first publication."""
    return next(iter(_adapters(pool, "adapter_current", stream)), None)


def history(pool: Pool, stream: str, *, limit: int | None = None, among: Sequence[int] | None = None) -> list[Adapter]:
    """List the adapters of a stream, newest first.

    Args:
        among: return only these versions. A stream can have a hundred thousand after a year.
    """
    return _adapters(pool, "adapter_history", stream, limit=limit, among=among)


def roll_back(pool: Pool, stream: str, version: int) -> None:
    """Make an earlier version current.

    This is an operator's decision, so it needs no lease. A publication that runs at the same time waits. It then fails
    because its parent is no longer current.

    Raises:
        DatabaseError: the stream has no such version, or the version was withdrawn.
    """
    with pool.transaction() as cursor:
        cursor.execute(QUERIES["lease_exclusive"], {"stream": stream})
        cursor.execute(QUERIES["adapter_retire"], {"stream": stream})
        cursor.execute(QUERIES["adapter_make_current"], {"stream": stream, "version": version})
        if cursor.fetchone() is None:
            raise DatabaseError(
                f"the stream {stream} has no adapter {version}, or it was withdrawn by `codelupe revoke`. "
                "Choose a version that `codelupe adapters` lists"
            )


def insert_current(
    cursor: extensions.cursor, stream: str, version: int, parent_version: int | None, adapter: NewAdapter
) -> None:
    """Insert a version and make it current. Call this inside the transaction of the verdict."""
    cursor.execute(QUERIES["adapter_retire"], {"stream": stream})
    cursor.execute(
        QUERIES["adapter_insert"],
        {
            "version": version,
            "stream": stream,
            "parent_version": parent_version,
            "folder": adapter.folder,
            "manifest_sha256": adapter.manifest_sha256,
            "evaluation": as_json(adapter.evaluation),
        },
    )


def _adapters(pool: Pool, name: str, stream: str, **parameters: Any) -> list[Adapter]:
    with pool.transaction(read_only=True) as cursor:
        cursor.execute(QUERIES[name], {"stream": stream, **parameters})
        return [_adapter(row) for row in cursor.fetchall()]


def _adapter(row: Sequence[Any]) -> Adapter:
    version, stream, parent_version, folder, manifest_sha256, evaluation, published_at, is_current = row
    return Adapter(
        version=version, stream=stream, parent_version=parent_version, folder=folder,
        manifest_sha256=manifest_sha256, evaluation=evaluation, published_at=published_at,
        is_current=is_current,
    )  # fmt: skip
