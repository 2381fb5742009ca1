"""Applies the files of migrations/ in the order of their names: forward only, one process at a time, all or none.

The files of migrations/source/ make the table `code_files` and its index. They are applied only where `code_files` is
the service's source, and are not recorded: whether they are outstanding is seen in the catalogue. Where nothing is
outstanding, nothing is executed that needs more rights than reading.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import psycopg2
from psycopg2 import errors, extensions

from db import rights
from db.classify import classify
from db.errors import MigrationNotAllowed, Misconfigured
from db.pool import Pool
from db.statements import QUERIES
from db.table import Source

FOLDER = Path(__file__).parent.parent / "migrations"
EARLIER_DIGESTS = {
    "0001_initial.sql": "079527c937848243b9dfa838f02639134b1f61246c185d7a063f16f35c5a28a4",
    "0003_places.sql": "5849c1db5edabecfda0c528796052037a197675d98a457445e24bdd55c85f1b4",
}
"""These two files made the source table and its index wherever SOURCE_TABLE pointed, and so created tables in schemas
that belong to others. Both moved to migrations/source/. A database that has the earlier files applied has the same
schema, so it is accepted. No other applied file may ever change."""
OUR_SOURCES = ("code_files", "public.code_files")
"""Names of the source table that migrations/source/ makes. A source with columns of other names is its owner's."""


def apply(pool: Pool, source: Source | None = None) -> list[str]:
    """Apply the outstanding migrations, and give roles that use the tables the same rights on new ones.

    Args:
        source: the service's source. Default: `code_files`.

    Returns:
        the names of the migrations that were applied

    Raises:
        Misconfigured: the file of an applied migration has changed, the database has a migration that this program does
            not know, or a new migration has a lower number than an applied one.
        MigrationNotAllowed: the database's role may not apply them. The message names what an administrator runs.
        DatabaseError: a migration failed. The message names it.
    """
    if not pending(pool, source):
        return []
    with pool.transaction() as cursor:
        cursor.execute(QUERIES["migrations_lock"])
        cursor.execute(QUERIES["migrations_timeout"])
        names = _pending(cursor, source)  # another process may have applied them meanwhile
        role = rights.current_role(cursor)
        try:
            _make_table(cursor)
            for name in names:
                _apply(cursor, name)
            if names:
                rights.extend(cursor)
        except errors.InsufficientPrivilege as error:
            raise MigrationNotAllowed(names, role, " ".join(str(error).split())) from error
    return names


def pending(pool: Pool, source: Source | None = None) -> list[str]:
    """List the migrations that `apply` would apply, without changes. Raises Misconfigured like `apply`."""
    with pool.transaction(read_only=True) as cursor:
        return _pending(cursor, source)


def _pending(cursor: extensions.cursor, source: Source | None) -> list[str]:
    cursor.execute(QUERIES["migrations_known"])
    known = cursor.fetchone() == (True,)
    return [*(_outstanding(cursor) if known else sorted(_scripts())), *_outstanding_source(cursor, source or Source())]


def _outstanding_source(cursor: extensions.cursor, source: Source) -> list[str]:
    """The files of migrations/source/ to apply."""
    if source.name not in OUR_SOURCES:
        return []
    cursor.execute(QUERIES["source_table_state"])
    row = cursor.fetchone()
    if row is None:
        return ["source/code_files.sql", "source/code_files_place.sql"]
    return ["source/code_files_place.sql"] if row[0] else []


def _make_table(cursor: extensions.cursor) -> None:
    """Make the schema and the table of applied migrations. `if not exists` would need the right even if they exist."""
    cursor.execute(QUERIES["migrations_schema_known"])
    if cursor.fetchone() != (True,):
        cursor.execute(QUERIES["migrations_schema"])
    cursor.execute(QUERIES["migrations_known"])
    if cursor.fetchone() != (True,):
        cursor.execute(QUERIES["migrations_table"])


def _apply(cursor: extensions.cursor, name: str) -> None:
    script = (FOLDER / name).read_text(encoding="utf-8")
    try:
        cursor.execute(script)
    except errors.InsufficientPrivilege:
        raise
    except psycopg2.Error as error:
        found = classify(error, cursor.connection)
        raise type(found)(f"the migration {name} failed, and the database was not changed: {found}") from error
    if not name.startswith("source/"):
        cursor.execute(QUERIES["migrations_add"], {"name": name, "sha256": _digest(script)})


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
    if changed := sorted(
        name for name, digest in applied.items() if digest not in (scripts[name], EARLIER_DIGESTS.get(name))
    ):
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
