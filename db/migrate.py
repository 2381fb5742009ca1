"""Applies the files of migrations/ in the order of their names: forward only, one process at a time, all or none."""

from __future__ import annotations

import hashlib
from pathlib import Path

import psycopg2
from psycopg2 import extensions

from db.classify import classify
from db.errors import Misconfigured
from db.pool import Pool
from db.statements import QUERIES

FOLDER = Path(__file__).parent.parent / "migrations"


def apply(pool: Pool) -> list[str]:
    """Apply the outstanding migrations.

    Returns:
        the names of the migrations that were applied

    Raises:
        Misconfigured: the file of an applied migration has changed, the database has a migration that this program does
            not know, or a new migration has a lower number than an applied one.
        DatabaseError: a migration failed. The message names it.
    """
    with pool.transaction() as cursor:
        cursor.execute(QUERIES["migrations_lock"])
        cursor.execute(QUERIES["migrations_timeout"])
        cursor.execute(QUERIES["migrations_table"])
        names = _outstanding(cursor)
        for name in names:
            script = (FOLDER / name).read_text(encoding="utf-8")
            try:
                cursor.execute(script)
            except psycopg2.Error as error:
                found = classify(error, cursor.connection)
                raise type(found)(f"the migration {name} failed, and the database was not changed: {found}") from error
            cursor.execute(QUERIES["migrations_add"], {"name": name, "sha256": _digest(script)})
    return names


def pending(pool: Pool) -> list[str]:
    """List the migrations that `apply` would apply, without changes. Raises Misconfigured like `apply`."""
    with pool.transaction(read_only=True) as cursor:
        cursor.execute(QUERIES["migrations_known"])
        known = cursor.fetchone()
        return _outstanding(cursor) if known == (True,) else sorted(_scripts())


def _scripts() -> dict[str, str]:
    """Return the digest of every migration by its name."""
    return {path.name: _digest(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.sql"))}


def _digest(script: str) -> str:
    return hashlib.sha256(script.encode()).hexdigest()


def _outstanding(cursor: extensions.cursor) -> list[str]:
    scripts = _scripts()
    cursor.execute(QUERIES["migrations_applied"])
    applied: dict[str, str] = dict(cursor.fetchall())
    if unknown := sorted(applied.keys() - scripts.keys()):
        raise Misconfigured(
            f"the database has migrations that this program does not know ({', '.join(unknown)}): "
            "a newer version has used it. Update the program"
        )
    if changed := sorted(name for name, digest in applied.items() if scripts[name] != digest):
        raise Misconfigured(
            f"applied migrations were changed afterwards ({', '.join(changed)}). Restore these files, "
            "and put the change into a new migration"
        )
    outstanding = sorted(scripts.keys() - applied.keys())
    if outstanding and applied and outstanding[0] < max(applied):
        raise Misconfigured(
            f"{outstanding[0]} sorts before {max(applied)}, which is already applied. Give it a higher number"
        )
    return outstanding
