"""Finds the adapters that were trained on a file, and revokes files so that they are never trained on again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg2 import extensions

from db import trunk
from db.errors import DatabaseError
from db.pool import Pool
from db.statements import QUERIES
from db.table import Source, resolved


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The rows to find. Exactly one of the fields is set."""

    file_id: int | None = None
    path: str | None = None
    """The path in the source, or `repository/path`."""
    sha256: str | None = None
    """The sha256 of the text in UTF-8, in hex."""


@dataclass(frozen=True, kw_only=True)
class Use:
    """The use of a row in a run."""

    run_id: int
    state: str
    file_id: int
    role: str
    outcome: str | None
    """The outcome of the row in the run. None while the run is live."""
    tokens: int | None
    sha256: str
    """The sha256 of the text when it was claimed."""
    claimed_at: datetime


@dataclass(frozen=True, kw_only=True)
class AffectedAdapter:
    """A published adapter that was trained on one of the rows, or descends from one that was."""

    version: int
    parent_version: int | None
    directly: bool
    """Whether its own run was trained on one of the rows. Otherwise an ancestor's run was."""
    is_current: bool
    is_withdrawn: bool


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """The runs and adapters that used some rows."""

    file_ids: list[int]
    uses: list[Use]
    adapters: list[AffectedAdapter]
    """Sorted by version."""
    clean_ancestor: int | None
    """The newest version among the current adapter and its ancestors that is not in `adapters`, if there is one."""
    revoked: str | None
    """The reason of the revocation. None if the rows are not revoked."""


def lineage(pool: Pool, source: Source, stream: str, subject: Subject) -> Lineage:
    """Find rows, and the runs and adapters that used them.

    Raises:
        DatabaseError: no row matches the subject. A hash without rows is not an error.
    """
    with pool.transaction(isolation="repeatable read", read_only=True) as cursor:
        return _lineage(cursor, resolved(cursor, source), stream, subject)


def revoke(
    pool: Pool, source: Source, stream: str, subject: Subject, *, reason: str, begin_anew: bool = False
) -> Lineage:
    """Revoke rows, so that they are never trained on again. A revoked hash also covers rows that arrive later.

    The held-out texts of the rows are deleted. A live run that trains on one of them will not be published. A trunk
    that has learned from one of them is given up. This is an operator's decision, so it needs no lease. A publication
    that runs at the same time waits, and then sees the revocation.

    Args:
        begin_anew: also withdraw every adapter that was trained on the rows, and make the newest clean ancestor current
            (or none). All other rows that the withdrawn adapters were trained on are returned, so that they are
            trained on again.

    Returns:
        the runs and adapters that used the rows

    Raises:
        DatabaseError: no row matches the subject, or the stream does not exist. A hash without rows is not an error.
    """
    with pool.transaction() as cursor:
        cursor.execute(QUERIES["stream_get"], {"stream": stream})
        if cursor.fetchone() is None:
            raise DatabaseError(
                f"there is no stream {stream}, because no service has started it yet. Start it once with "
                "`codelupe up`, or name another stream with --recipe or CODELUPE_STREAM"
            )
        cursor.execute(QUERIES["lease_exclusive"], {"stream": stream})
        found = _lineage(cursor, resolved(cursor, source), stream, subject)
        entries: list[tuple[int | None, str | None]] = [(file_id, None) for file_id in found.file_ids]
        entries += [(None, subject.sha256)] if subject.sha256 is not None else []
        for file_id, sha256 in entries:
            cursor.execute(
                QUERIES["revocation_insert"],
                {"stream": stream, "file_id": file_id, "sha256": sha256, "reason": reason},
            )
        parameters = {"stream": stream, "file_ids": found.file_ids, "versions": [a.version for a in found.adapters]}
        cursor.execute(QUERIES["revoked_forget_held_out"], parameters)
        if trunk.revoked(cursor, stream):
            trunk.return_rows(cursor, stream)
        if begin_anew and any(adapter.is_current for adapter in found.adapters):
            cursor.execute(QUERIES["adapter_retire"], {"stream": stream})
            if found.clean_ancestor is not None:
                cursor.execute(QUERIES["adapter_make_current"], {"stream": stream, "version": found.clean_ancestor})
        if begin_anew:
            cursor.execute(QUERIES["adapters_withdraw"], parameters)
            cursor.execute(QUERIES["ledger_withdraw"], parameters)
            cursor.execute(QUERIES["superseded_withdraw"], parameters)
        return _lineage(cursor, resolved(cursor, source), stream, subject)


def revoked_among(cursor: extensions.cursor, stream: str, run_id: int) -> list[int]:
    """Return the revoked rows of a live run."""
    cursor.execute(QUERIES["revoked_of_run"], {"stream": stream, "run_id": run_id})
    return [file_id for (file_id,) in cursor.fetchall()]


def revoked(cursor: extensions.cursor, stream: str) -> tuple[frozenset[int], frozenset[str]]:
    """Return what must not be claimed: the ids of revoked rows and the hashes of revoked texts."""
    cursor.execute(QUERIES["revocations"], {"stream": stream})
    found = cursor.fetchall()
    return (
        frozenset(file_id for file_id, _ in found if file_id is not None),
        frozenset(sha256 for _, sha256 in found if sha256 is not None),
    )


def _lineage(cursor: extensions.cursor, source: Source, stream: str, subject: Subject) -> Lineage:
    file_ids = _file_ids(cursor, source, stream, subject)
    parameters = {"stream": stream, "file_ids": file_ids, "sha256": subject.sha256}
    cursor.execute(QUERIES["lineage_uses"], parameters)
    uses = [_use(row) for row in cursor.fetchall()]
    cursor.execute(QUERIES["lineage_adapters"], parameters)
    adapters = [
        AffectedAdapter(
            version=version, parent_version=parent, directly=directly, is_current=current, is_withdrawn=withdrawn
        )
        for version, parent, directly, current, withdrawn in cursor.fetchall()
    ]
    cursor.execute(QUERIES["lineage_clean_ancestor"], {**parameters, "versions": [a.version for a in adapters]})
    clean = cursor.fetchone()
    cursor.execute(QUERIES["revocation_reason"], parameters)
    reason = cursor.fetchone()
    return Lineage(
        file_ids=file_ids,
        uses=uses,
        adapters=adapters,
        clean_ancestor=clean[0] if clean else None,
        revoked=reason[0] if reason else None,
    )


def _file_ids(cursor: extensions.cursor, source: Source, stream: str, subject: Subject) -> list[int]:
    match subject:
        case Subject(file_id=int(file_id)):
            name, description = "rows_by_id", f"the id {file_id}"
        case Subject(path=str(path)):
            name, description = "rows_by_path", f"the path {path}"
        case Subject(sha256=str()):
            name, description = "rows_by_hash", ""
        case _:
            raise ValueError("the subject has neither a file id, a path nor a hash")
    cursor.execute(source.statement(name), {"stream": stream, **vars(subject)})
    file_ids = sorted(file_id for (file_id,) in cursor.fetchall())
    if not file_ids and description:
        raise DatabaseError(
            f"neither {source.table} nor a run of the stream {stream} has {description}. If the row was deleted from "
            "the source, search by its id or with --sha256"
        )
    return file_ids


def _use(row: Sequence[Any]) -> Use:
    run_id, state, file_id, role, outcome, tokens, sha256, claimed_at = row
    return Use(
        run_id=run_id, state=state, file_id=file_id, role=role, outcome=outcome, tokens=tokens, sha256=sha256,
        claimed_at=claimed_at,
    )  # fmt: skip
