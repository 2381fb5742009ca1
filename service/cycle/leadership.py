"""Leadership of a stream: acquires, renews and releases its lease."""

from __future__ import annotations

import logging
import time

from db import lease as leases
from db.errors import DatabaseError, LeaseLost
from db.lease import Lease
from db.pool import Pool
from service.logs import event as log

LEASE_SECONDS = 180.0
"""Longer than hashing a 4 GB adapter takes. A restart in the same folder keeps its own lease and does not wait."""
RENEW_SECONDS = 10.0


class Leadership:
    """One service's lease on one stream. Only the holder may write; the database checks every write."""

    def __init__(self, pool: Pool, stream: str, holder: str) -> None:
        self._pool, self._stream, self._holder = pool, stream, holder
        self._lease: Lease | None = None
        self._renewed = 0.0

    @property
    def lease(self) -> Lease:
        """The lease to write under.

        Raises:
            LeaseLost: this service has no lease.
        """
        if self._lease is None:
            raise LeaseLost(f"no lease on stream {self._stream}")
        return self._lease

    def acquire(self) -> bool:
        """Acquire the lease if it is free, expired or already ours."""
        self._lease = leases.acquire(self._pool, self._stream, self._holder, LEASE_SECONDS)
        self._renewed = time.monotonic()
        return self._lease is not None

    def other_holder(self) -> tuple[str, float] | None:
        """The other service that holds the lease, and the remaining seconds."""
        held = leases.holder(self._pool, self._stream)
        return held if held is not None and held[0] != self._holder else None

    def due(self) -> bool:
        """Whether the lease must be renewed."""
        return time.monotonic() - self._renewed > RENEW_SECONDS

    def renew(self) -> None:
        """Renew the lease if it is due. Raises LeaseLost if another service holds it."""
        if self.due():
            leases.renew(self._pool, self.lease, LEASE_SECONDS)
            self._renewed = time.monotonic()

    def put_off(self) -> None:
        """Postpone the renewal, because the database did not answer."""
        self._renewed = time.monotonic()

    def release(self) -> None:
        """Release the lease. If the database does not answer, the lease expires."""
        if self._lease is not None:
            try:
                leases.release(self._pool, self._lease)
            except DatabaseError as error:
                log("Lease not released; it will expire", level=logging.WARNING, reason=str(error))
