"""One writer per stream: a lease with an epoch and an expiry, by the database's clock.

An advisory lock has no expiry: a stopped process would keep it.
"""

from __future__ import annotations

from dataclasses import dataclass

from psycopg2 import extensions

from db.errors import LeaseLost
from db.pool import Pool
from db.statements import QUERIES


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The right to write to a stream, until it expires or another takes it."""

    stream: str
    holder: str
    epoch: int
    """Grows with each acquisition: what an earlier holder still sends is told apart by it."""


def acquire(pool: Pool, stream: str, holder: str, ttl_seconds: float) -> Lease | None:
    """Take the lease if it is free, expired or already this holder's; None while another has it."""
    with pool.transaction() as cursor:
        cursor.execute(QUERIES["lease_brief"])
        cursor.execute(QUERIES["lease_acquire"], {"stream": stream, "holder": holder, "ttl": ttl_seconds})
        row = cursor.fetchone()
    return None if row is None else Lease(stream=stream, holder=holder, epoch=row[0])


def renew(pool: Pool, lease: Lease, ttl_seconds: float) -> None:
    """Hold the lease for `ttl_seconds` from now.

    Raises:
        LeaseLost: it expired or was taken.
    """
    with pool.transaction() as cursor:
        cursor.execute(QUERIES["lease_brief"])
        cursor.execute(QUERIES["lease_renew"], {**vars(lease), "ttl": ttl_seconds})
        if cursor.fetchone() is None:
            raise LeaseLost(_lost(lease))


def release(pool: Pool, lease: Lease) -> None:
    """Let the next one in at once. A lease that was lost already is left to its new holder."""
    with pool.transaction() as cursor:
        cursor.execute(QUERIES["lease_release"], vars(lease))


def fence(cursor: extensions.cursor, lease: Lease, *, lock: bool = True) -> None:
    """Make sure, inside a write's transaction, that the lease is still this holder's.

    With `lock` it cannot change hands before the transaction ends; a renewal waits as long. Without, it is a
    look alone (for a transaction that lasts: it fences again at its end).

    Raises:
        LeaseLost: it expired or was taken.
    """
    if lock:
        cursor.execute(QUERIES["lease_brief"])
    cursor.execute(QUERIES["lease_lock" if lock else "lease_read"], {"stream": lease.stream})
    if cursor.fetchone() != (lease.holder, lease.epoch, True):
        raise LeaseLost(_lost(lease))


def holder(pool: Pool, stream: str) -> tuple[str, float] | None:
    """Who holds the stream, and the seconds left; None when nobody does."""
    with pool.transaction(read_only=True) as cursor:
        cursor.execute(QUERIES["lease_holder"], {"stream": stream})
        row = cursor.fetchone()
    return None if row is None else (row[0], row[1])


def _lost(lease: Lease) -> str:
    return (
        f"{lease.holder} no longer holds the stream {lease.stream} (epoch {lease.epoch}): it expired or was taken over"
    )
