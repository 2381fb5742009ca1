"""Turns psycopg2's errors into those of db.errors, with advice if somebody has to act."""

from __future__ import annotations

import re

import psycopg2
from psycopg2 import extensions

from db.errors import DatabaseError, Misconfigured, Unavailable
from db.sentinel import WatchedConnection

_CONNECT_ADVICE = (
    (
        r"password authentication failed|no password supplied",
        "Check POSTGRES_USER and POSTGRES_PASSWORD (or DATABASE_URL)",
    ),
    (r'database ".*" does not exist', "Create it, or correct POSTGRES_DB (or DATABASE_URL)"),
    (r'role ".*" does not exist', "Create the role, or correct POSTGRES_USER (or DATABASE_URL)"),
    (
        r"no pg_hba\.conf entry|authentication failed|permission denied for database",
        "Allow this user and host in the server's pg_hba.conf",
    ),
    (r"server does not support SSL|certificate|sslmode", "Correct the SSL options of DATABASE_URL"),
    (r"invalid (connection option|integer value|port|.* value)", "Correct DATABASE_URL"),
)

_SQLSTATE_ADVICE = {
    "28": "Check POSTGRES_USER and POSTGRES_PASSWORD (or DATABASE_URL)",
    "3D": "Create the database, or correct POSTGRES_DB (or DATABASE_URL)",
    "3F": "Create the schema, or correct SOURCE_TABLE",
    "42501": "Grant the missing right to the database user. `codelupe doctor` names it",
    "42P01": "The table is missing. Run the migrations, or correct SOURCE_TABLE",
    "42703": "The column is missing. Run the migrations, or correct SOURCE_COLUMNS",
    "42": "The database does not have the tables and columns that this version expects. Run the migrations",
}


def classify(
    error: psycopg2.Error, connection: extensions.connection | None, *, secret: str | None = None
) -> DatabaseError:
    """Return the error of db.errors that matches an error of psycopg2.

    `pgcode` is None after a shutdown during a query, a refused connection or a killed backend. So this function checks
    the state of the connection and the class of the error first. An error while connecting never has a code, so it is
    classified by its text.

    Args:
        connection: None if connecting failed.
        secret: the password, which is removed from the message.
    """
    text = " ".join(str(error).split())
    if connection is None:
        text = text.replace(secret, "***") if secret else text
        for pattern, advice in _CONNECT_ADVICE:
            if re.search(pattern, text):
                return Misconfigured(f"the database cannot be used: {text}. {advice}")
        return Unavailable(f"the database cannot be reached: {text}")
    code = error.pgcode or ""
    if isinstance(connection, WatchedConnection) and connection.given_up:
        return Unavailable(f"the connection to the database was closed: {connection.given_up}")
    # An error from the server has a code. `closed` alone is not enough: the error may be that of another connection.
    lost = type(error) is psycopg2.DatabaseError and not code
    if connection.closed or lost or isinstance(error, psycopg2.InterfaceError):
        return Unavailable(f"the connection to the database was lost: {text or type(error).__name__}")
    if code == "25006":
        return Unavailable(f"the database is read-only. It may be a standby: {text}")
    for prefix in (code, code[:2]):
        if prefix in _SQLSTATE_ADVICE:
            return Misconfigured(f"{text}. {_SQLSTATE_ADVICE[prefix]}")
    if isinstance(
        error, psycopg2.OperationalError
    ):  # timeout, deadlock, serialization failure, out of memory, disk full
        return Unavailable(f"the database could not execute the statement now: {text}")
    return DatabaseError(f"{text} (SQLSTATE {code or 'unknown'})")
