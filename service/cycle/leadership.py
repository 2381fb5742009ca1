"""Being the one service of a stream: its lease, taken, renewed in time and given back."""

from __future__ import annotations

import logging
import time

from db import lease as leases
from db.errors import DatabaseError, LeaseLost
from db.lease import Lease
from db.pool import Pool
from service.logs import event as log

LEASE_SECONDS = 180.0
"""Longer than hashing a 4 GB adapter takes. A restart in the same folder does not wait for it: the lease is its own."""
RENEW_SECONDS = 10.0


class Leadership:
    """The lease of one stream for one service. Whoever holds it may write; the database checks at every write."""

    def __init__(self, pool: Pool, stream: str, holder: str) -> None:
        self._pool, self._stream, self._holder = pool, stream, holder
        self._lease: Lease | None = None
        self._renewed = 0.0

    @property
    def lease(self) -> Lease:
        """The lease to write under.

        Raises:
            LeaseLost: we have none.
        """
        if self._lease is None:
            raise LeaseLost(f"no lease on stream {self._stream}")
        return self._lease

    def acquire(self) -> bool:
        """Take the lease if it is free, has run out, or was ours."""
        self._lease = leases.acquire(self._pool, self._stream, self._holder, LEASE_SECONDS)
        self._renewed = time.monotonic()
        return self._lease is not None

    def other_holder(self) -> tuple[str, float] | None:
        """Another service that holds the lease, and the seconds that it has left."""
        held = leases.holder(self._pool, self._stream)
        return held if held is not None and held[0] != self._holder else None

    def due(self) -> bool:
        """Whether it is time to renew."""
        return time.monotonic() - self._renewed > RENEW_SECONDS

    def renew(self) -> None:
        """Renew the lease when it is time; raises LeaseLost when another service took it."""
        if self.due():
            leases.renew(self._pool, self.lease, LEASE_SECONDS)
            self._renewed = time.monotonic()

    def put_off(self) -> None:
        """The database did not answer: try again after the usual time."""
        self._renewed = time.monotonic()

    def release(self) -> None:
        """Let another service have it at once; without an answer it runs out by itself."""
        if self._lease is not None:
            try:
                leases.release(self._pool, self._lease)
            except DatabaseError as error:
                log("Lease not released; it runs out by itself", level=logging.WARNING, reason=str(error))
