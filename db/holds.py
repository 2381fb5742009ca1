"""The pause that a person asks for. It is kept in the database, so it outlasts the service that it holds."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from db.errors import DatabaseError
from db.pool import Pool
from db.statements import QUERIES
from db.streams import get
from db.table import CHANNEL


@dataclass(frozen=True, kw_only=True)
class Hold:
    """A pause that somebody asked for."""

    since: datetime
    stops_training: bool
    """Whether the run in progress waits too, from its last checkpoint."""


def hold(pool: Pool, stream: str, *, stop_training: bool) -> None:
    """Pause a stream until `release`. A waiting service notices it at once.

    Raises:
        DatabaseError: no service has ever worked on the stream.
    """
    if get(pool, stream) is None:
        raise DatabaseError(f"there is no stream {stream} yet. `codelupe up` makes it, once its base model is ready")
    with pool.transaction() as cursor:
        cursor.execute(QUERIES["hold_set"], {"stream": stream, "stops_training": stop_training})
        cursor.execute(QUERIES["files_notify"], {"channel": CHANNEL})


def release(pool: Pool, stream: str) -> bool:
    """End a pause. Returns whether there was one."""
    with pool.transaction() as cursor:
        cursor.execute(QUERIES["hold_clear"], {"stream": stream})
        released = cursor.fetchone() is not None
        cursor.execute(QUERIES["files_notify"], {"channel": CHANNEL})
    return released


def held(pool: Pool, stream: str) -> Hold | None:
    """Return the pause of a stream, or None."""
    with pool.transaction(read_only=True) as cursor:
        cursor.execute(QUERIES["hold_get"], {"stream": stream})
        row = cursor.fetchone()
    return None if row is None else Hold(since=row[0], stops_training=row[1])
