"""Allows one writer per stream, with a lease that has an epoch and expires by the database's clock.

An advisory lock would not do, because it does not expire: a stopped process would keep it.
"""

from __future__ import annotations

from dataclasses import dataclass

from psycopg2 import extensions

from db.errors import LeaseLost
from db.pool import Pool
from db.statements import QUERIES


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The right to write to a stream, until the lease expires or another holder takes it."""

    stream: str
    holder: str
    epoch: int
    """Increases with each acquisition, so that writes of an earlier holder are recognised."""


def acquire(pool: Pool, stream: str, holder: str, ttl_seconds: float) -> Lease | None:
    """Take the lease if it is free, expired or already belongs to this holder. Return None if another holder has it.

    A holder that is writing has it locked, and keeps it even if the write takes longer than the lease.
    """
    with pool.transaction() as cursor:
        cursor.execute(QUERIES["lease_idle_limit"])
        cursor.execute(QUERIES["lease_of_another"], {"stream": stream, "holder": holder})
        if cursor.fetchone():
            cursor.execute(QUERIES["lease_not_locked"], {"stream": stream})
            if cursor.fetchone() is None:
                return None
        cursor.execute(QUERIES["lease_acquire"], {"stream": stream, "holder": holder, "ttl": ttl_seconds})
        row = cursor.fetchone()
    return None if row is None else Lease(stream=stream, holder=holder, epoch=row[0])


def renew(pool: Pool, lease: Lease, ttl_seconds: float, *, patient: bool = False) -> None:
    """Extend the lease to `ttl_seconds` from now. `patient` waits longer for a write that locks the lease.

    Raises:
        LeaseLost: the lease expired or was taken over.
    """
    with pool.transaction() as cursor:
        cursor.execute(QUERIES["lease_idle_limit"])
        if patient:
            cursor.execute(QUERIES["lease_wait"])
        cursor.execute(QUERIES["lease_renew"], {**vars(lease), "ttl": ttl_seconds})
        if cursor.fetchone() is None:
            raise LeaseLost(_lost(lease))


def release(pool: Pool, lease: Lease) -> None:
    """Release the lease, so that another holder can take it at once. A lease that was already lost is not changed."""
    with pool.transaction() as cursor:
        cursor.execute(QUERIES["lease_release"], vars(lease))


def fence(cursor: extensions.cursor, lease: Lease, *, lock: bool = True) -> None:
    """Check inside a write transaction that the lease still belongs to this holder.

    With `lock`, the lease cannot change hands before the transaction ends, and a renewal waits until then. A long
    transaction calls this without `lock` at its start, and with `lock` at its end.

    Raises:
        LeaseLost: the lease expired or was taken over.
    """
    if lock:
        cursor.execute(QUERIES["lease_idle_limit"])
    cursor.execute(QUERIES["lease_lock" if lock else "lease_read"], {"stream": lease.stream})
    if cursor.fetchone() != (lease.holder, lease.epoch, True):
        raise LeaseLost(_lost(lease))


def holder(pool: Pool, stream: str) -> tuple[str, float] | None:
    """Return the holder of the stream and the seconds until the lease expires, or None if nobody holds it."""
    with pool.transaction(read_only=True) as cursor:
        cursor.execute(QUERIES["lease_holder"], {"stream": stream})
        row = cursor.fetchone()
    return None if row is None else (row[0], row[1])


def _lost(lease: Lease) -> str:
    return (
        f"{lease.holder} no longer holds the stream {lease.stream} (epoch {lease.epoch}): "
        "the lease expired or was taken over"
    )
