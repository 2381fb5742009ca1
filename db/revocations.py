"""Which adapters saw a file, and files that must never be trained on again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg2 import extensions

from db.errors import DatabaseError
from db.pool import Pool
from db.statements import QUERIES
from db.table import Source, resolved


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is asked about; one of the three."""

    file_id: int | None = None
    path: str | None = None
    """As the source has it, or with the repository and a slash before it."""
    sha256: str | None = None
    """Of the text's UTF-8 bytes, in hex."""


@dataclass(frozen=True, kw_only=True)
class Use:
    """A run that had one of the rows."""

    run_id: int
    state: str
    file_id: int
    role: str
    outcome: str | None
    """What became of the row there; None while the run lives, or where it was given back."""
    tokens: int | None
    sha256: str
    """Of the text as it was claimed."""
    claimed_at: datetime


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A published adapter that was trained on one of the rows, or hangs on one that was."""

    version: int
    parent_version: int | None
    directly: bool
    """Whether its own run was; else an ancestor's."""
    is_current: bool
    is_withdrawn: bool


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """Where some rows went."""

    file_ids: list[int]
    uses: list[Use]
    adapters: list[Seen]
    """By version."""
    clean_ancestor: int | None
    """The newest ancestor of the current adapter that is none of `adapters`; None where only the base is."""
    revoked: str | None
    """Why they may not be trained on, where that was said."""


def lineage(pool: Pool, source: Source, stream: str, subject: Subject) -> Lineage:
    """Find rows and follow them.

    Raises:
        DatabaseError: there is no such row.
    """
    with pool.transaction(isolation="repeatable read", read_only=True) as cursor:
        return _lineage(cursor, resolved(cursor, source), stream, subject)


def revoke(
    pool: Pool, source: Source, stream: str, subject: Subject, *, reason: str, begin_anew: bool = False
) -> Lineage:
    """Mark rows, and for a hash every copy to come, as never to be trained on again; returns where they went.

    Their held-out texts are forgotten, and a live run that has one of them will not be published. It is an operator's
    decision and needs no lease; a publication under way waits, and then finds it.

    Args:
        begin_anew: withdraw every adapter that saw them, make the newest clean ancestor current (or none), and return
            what the withdrawn ones were trained on, these rows apart, to be trained on again.

    Raises:
        DatabaseError: there is no such row, or no such stream. A hash that nobody knows yet is no error.
    """
    with pool.transaction() as cursor:
        cursor.execute(QUERIES["stream_get"], {"stream": stream})
        if cursor.fetchone() is None:
            raise DatabaseError(
                f"there is no stream {stream}: no service has begun it yet. Start it once with `codelupe up`, or name "
                "another with --recipe or CODELUPE_STREAM"
            )
        cursor.execute(QUERIES["lease_exclusive"], {"stream": stream})
        found = _lineage(cursor, resolved(cursor, source), stream, subject)
        named: list[tuple[int | None, str | None]] = [(file_id, None) for file_id in found.file_ids]
        named += [(None, subject.sha256)] if subject.sha256 is not None else []
        for file_id, sha256 in named:
            cursor.execute(
                QUERIES["revocation_insert"],
                {"stream": stream, "file_id": file_id, "sha256": sha256, "reason": reason},
            )
        parameters = {"stream": stream, "file_ids": found.file_ids, "versions": [a.version for a in found.adapters]}
        cursor.execute(QUERIES["revoked_forget_held_out"], parameters)
        if begin_anew and any(adapter.is_current for adapter in found.adapters):
            cursor.execute(QUERIES["adapter_retire"], {"stream": stream})
            if found.clean_ancestor is not None:
                cursor.execute(QUERIES["adapter_make_current"], {"stream": stream, "version": found.clean_ancestor})
        if begin_anew:
            cursor.execute(QUERIES["adapters_withdraw"], parameters)
            cursor.execute(QUERIES["ledger_withdraw"], parameters)
        return _lineage(cursor, resolved(cursor, source), stream, subject)


def revoked_among(cursor: extensions.cursor, stream: str, run_id: int) -> list[int]:
    """Rows of a run that must not be trained on."""
    cursor.execute(QUERIES["revoked_of_run"], {"stream": stream, "run_id": run_id})
    return [file_id for (file_id,) in cursor.fetchall()]


def revoked(cursor: extensions.cursor, stream: str) -> tuple[frozenset[int], frozenset[str]]:
    """All that must not be claimed: rows by id, texts by hash."""
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
        Seen(version=version, parent_version=parent, directly=directly, is_current=current, is_withdrawn=withdrawn)
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
            name, said = "rows_by_id", f"the id {file_id}"
        case Subject(path=str(path)):
            name, said = "rows_by_path", f"the path {path}"
        case Subject(sha256=str()):
            name, said = "rows_by_hash", ""
        case _:
            raise ValueError("nothing is asked about")
    cursor.execute(source.statement(name), {"stream": stream, **vars(subject)})
    file_ids = sorted(file_id for (file_id,) in cursor.fetchall())
    if not file_ids and said:
        raise DatabaseError(
            f"neither {source.table} nor a run of the stream {stream} has {said}; a row that was deleted from the "
            "source is found by its id, or by --sha256"
        )
    return file_ids


def _use(row: Sequence[Any]) -> Use:
    run_id, state, file_id, role, outcome, tokens, sha256, claimed_at = row
    return Use(
        run_id=run_id, state=state, file_id=file_id, role=role, outcome=outcome, tokens=tokens, sha256=sha256,
        claimed_at=claimed_at,
    )  # fmt: skip
