"""Leadership of a stream: acquires, renews and releases its lease.

The main loop renews the lease. While it is busy for longer than that, a thread renews it in its place. So a leader that
is only slow keeps the stream, and the lease may be short: a leader that was killed, stopped or cut off is replaced
within a minute.

        renewed ├── RENEW ──┤ the loop
                ├───── STAND_IN ─────┤ the thread, and again each second
                ├──────────────── LEASE ──────────────────────┤ ≤ 2 s ┤ a standby takes the stream
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from db import lease as leases
from db.errors import DatabaseError, LeaseLost
from db.lease import Lease
from db.pool import Pool
from service.logs import event as log

LEASE_SECONDS = 45.0
"""A standby waits this long for a leader that is gone, plus two seconds. A restart in the same folder keeps its own
lease and does not wait."""
RENEW_SECONDS = 10.0
STAND_IN_SECONDS = 15.0
"""The thread renews a lease that was not renewed for this long."""
CHECKS = 15
"""How often the thread looks in that time."""


class Leadership:
    """One service's lease on one stream. Only the holder may write; the database checks every write.

    `is_alive` says whether the main loop still works. A loop that hangs loses its lease.
    """

    def __init__(self, pool: Pool, stream: str, holder: str, is_alive: Callable[[], bool]) -> None:
        self._pool, self._stream, self._holder, self._is_alive = pool, stream, holder, is_alive
        self._lease: Lease | None = None
        self._lost: Lease | None = None
        """The lease that the thread found lost. The main loop finds this out by itself."""
        self._renewed = 0.0
        """When the last renewal that succeeded began."""
        self._tried = 0.0
        """When the main loop last renewed, or put it off."""
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

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
        """Acquire the lease if it is free, expired or already ours. From then on a thread helps to keep it."""
        began = time.monotonic()
        self._lease = leases.acquire(self._pool, self._stream, self._holder, LEASE_SECONDS)
        self._renewed = self._tried = began
        if self._lease is not None and self._thread is None:
            self._thread = threading.Thread(target=self._stand_in, name="lease", daemon=True)
            self._thread.start()
        return self._lease is not None

    def other_holder(self) -> tuple[str, float] | None:
        """The other service that holds the lease, and the remaining seconds."""
        held = leases.holder(self._pool, self._stream)
        return held if held is not None and held[0] != self._holder else None

    def due(self) -> bool:
        """Whether the main loop must renew the lease."""
        return time.monotonic() - self._tried > RENEW_SECONDS

    def renew(self) -> None:
        """Renew the lease if it is due. Raises LeaseLost if another service holds it."""
        if self.due():
            self._renew(self.lease, patient=False)
            self._tried = time.monotonic()

    def put_off(self) -> None:
        """Postpone the renewal, because the database did not answer."""
        self._tried = time.monotonic()

    def release(self) -> None:
        """Release the lease. If the database does not answer, the lease expires."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        if self._lease is not None:
            try:
                leases.release(self._pool, self._lease)
            except DatabaseError as error:
                log("Lease not released; it will expire", level=logging.WARNING, reason=str(error))

    def _renew(self, lease: Lease, *, patient: bool) -> None:
        began = time.monotonic()
        leases.renew(self._pool, lease, LEASE_SECONDS, patient=patient)
        self._renewed = max(self._renewed, began)

    def _stand_in(self) -> None:
        """Renew the lease whenever the main loop is late."""
        while not self._ended.wait(STAND_IN_SECONDS / CHECKS) and not self._pool.is_closed:
            lease = self._lease
            late = time.monotonic() - self._renewed > STAND_IN_SECONDS
            if lease is None or lease is self._lost or not late or not self._is_alive():
                continue
            try:
                self._renew(lease, patient=True)  # the main loop may be writing, which locks the lease
            except LeaseLost:
                self._lost = lease
            except DatabaseError:  # the main loop has the same trouble, and reports it
                continue
