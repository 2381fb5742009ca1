"""Turns psycopg2's errors into db.errors, each with advice where a person has to act."""

from __future__ import annotations

import re

import psycopg2
from psycopg2 import extensions

from db.errors import DatabaseError, Misconfigured, Unavailable
from db.sentinel import WatchedConnection

_CONNECT_ADVICE = (
    (
        r"password authentication failed|no password supplied",
        "check POSTGRES_USER and POSTGRES_PASSWORD (or DATABASE_URL)",
    ),
    (r'database ".*" does not exist', "create it, or correct POSTGRES_DB (or DATABASE_URL)"),
    (r'role ".*" does not exist', "create the role, or correct POSTGRES_USER (or DATABASE_URL)"),
    (
        r"no pg_hba\.conf entry|authentication failed|permission denied for database",
        "allow this user and host in the server's pg_hba.conf",
    ),
    (r"server does not support SSL|certificate|sslmode", "correct the SSL options of DATABASE_URL"),
    (r"invalid (connection option|integer value|port|.* value)", "correct DATABASE_URL"),
)

_SQLSTATE_ADVICE = {
    "28": "check POSTGRES_USER and POSTGRES_PASSWORD (or DATABASE_URL)",
    "3D": "create the database, or correct POSTGRES_DB (or DATABASE_URL)",
    "3F": "create the schema, or correct SOURCE_TABLE",
    "42501": "grant the missing right to the database user",
    "42P01": "the table is missing: run the migrations, or correct SOURCE_TABLE",
    "42703": "the column is missing: run the migrations, or correct SOURCE_COLUMNS",
    "42": "the database does not have the tables and columns that this version expects",
}


def classify(
    error: psycopg2.Error, connection: extensions.connection | None, *, secret: str | None = None
) -> DatabaseError:
    """Turn an error of psycopg2 into ours. `connection` is None when connecting failed.

    `pgcode` is None for a shutdown in mid-query, a refused connection or a killed backend, so the
    connection's state and the error's class are asked first. While connecting there never is a code; the
    server's text has to
    do.
    """
    text = " ".join(str(error).split())
    if connection is None:
        text = text.replace(secret, "***") if secret else text
        for pattern, advice in _CONNECT_ADVICE:
            if re.search(pattern, text):
                return Misconfigured(f"cannot use the database: {text}; {advice}")
        return Unavailable(f"the database cannot be reached: {text}")
    code = error.pgcode or ""
    if isinstance(connection, WatchedConnection) and connection.given_up:
        return Unavailable(f"the connection to the database was given up: {connection.given_up}")
    # What a server says has a code. Asked for beside `closed`, as the error may be another connection's.
    lost = type(error) is psycopg2.DatabaseError and not code
    if connection.closed or lost or isinstance(error, psycopg2.InterfaceError):
        return Unavailable(f"the connection to the database was lost: {text or type(error).__name__}")
    if code == "25006":
        return Unavailable(f"the database is read-only at the moment (a standby?): {text}")
    for prefix in (code, code[:2]):
        if prefix in _SQLSTATE_ADVICE:
            return Misconfigured(f"{text}; {_SQLSTATE_ADVICE[prefix]}")
    if isinstance(error, psycopg2.OperationalError):  # timeouts, deadlocks, serialization, no memory, no disk
        return Unavailable(f"the database could not do it now: {text}")
    return DatabaseError(f"{text} (SQLSTATE {code or 'unknown'})")
