"""The rights of a database role: what a service needs, what is missing, and an administrator's grants.

A service needs to read its source and to use the schema `codelupe`. It needs to create nothing once the migrations are
applied.
"""

from __future__ import annotations

from dataclasses import dataclass

from psycopg2 import extensions

from db.errors import Misconfigured
from db.pool import Pool
from db.statements import QUERIES
from db.table import Source

SERVICE = "the service"


@dataclass(frozen=True, kw_only=True)
class MissingRight:
    """A right that a role does not have."""

    statement: str
    """The GRANT statement that gives it."""
    needed_by: str
    """`the service`, or the command that needs it."""


def current_role(cursor: extensions.cursor) -> str:
    """Return the role whose rights count."""
    cursor.execute(QUERIES["rights_role"])
    row = cursor.fetchone()
    assert row is not None
    return str(row[0])


def missing(cursor: extensions.cursor, role: str, source: Source | None) -> list[MissingRight]:
    """List what a role needs and does not have, on our tables and on the source. What does not exist is not listed."""
    *schema, table = source.identifier().strings if source else (None,)
    schema_name = schema[0] if schema else None
    insert = source is not None and source.name == "code_files"
    cursor.execute(QUERIES["rights_missing"], {"role": role, "table": table, "schema": schema_name, "insert": insert})
    return [MissingRight(statement=statement, needed_by=by) for statement, by in cursor.fetchall()]


def missing_to_create(cursor: extensions.cursor, role: str, *, ours: bool, source: bool) -> list[str]:
    """List the GRANT statements that a role needs to create our tables (`ours`) and `code_files` (`source`)."""
    cursor.execute(QUERIES["rights_to_create"], {"role": role, "ours": ours, "source": source})
    return [statement for (statement,) in cursor.fetchall()]


def owns_all(cursor: extensions.cursor, role: str) -> bool:
    """Whether a role may change all of our tables. No GRANT gives this right: it belongs to their owner."""
    cursor.execute(QUERIES["rights_owns_all"], {"role": role})
    return cursor.fetchone() == (True,)


def grant(pool: Pool, role: str, source: Source) -> list[str]:
    """Give a role all that a service needs. Returns the executed statements.

    Raises:
        Misconfigured: the role does not exist, or this role may not give one of the rights.
    """
    with pool.transaction() as cursor:
        cursor.execute(QUERIES["rights_role_known"], {"role": role})
        if cursor.fetchone() != (True,):
            raise Misconfigured(f"the role {role} does not exist. Create it: create role … login password '…'")
        wanted = [right.statement for right in missing(cursor, role, source)]
        for statement in wanted:
            cursor.execute(statement)
        if left := missing(cursor, role, source):  # Postgres only warns of a grant that it does not make
            statements = "; ".join(right.statement for right in left)
            raise Misconfigured(
                f"the role {current_role(cursor)} may not give these rights, and no right was changed. "
                f"Their owner runs: {statements}"
            )
    return wanted


def extend(cursor: extensions.cursor) -> None:
    """After a migration: give the roles of services the same rights on new tables of ours."""
    cursor.execute(QUERIES["rights_users"])
    for (role,) in cursor.fetchall():
        for right in missing(cursor, role, None):
            cursor.execute(right.statement)
