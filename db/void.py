"""Voids rejections that depend on settings which have changed since, so that the rows are decided again."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from db.lease import Lease, fence
from db.pool import Pool
from db.statements import QUERIES

BATCH_ROWS = 10_000
"""Rows of one transaction, so that the lease can be renewed in between."""


def void(pool: Pool, lease: Lease, settings: Mapping[str, str], beat: Callable[[], None]) -> dict[str, int]:
    """Return rows that were rejected with other settings than the present ones.

    Args:
        settings: by reason, a digest of the settings that it depends on

    Returns:
        the number of returned rows by reason

    Raises:
        LeaseLost: the lease expired, or another service took it.
    """
    returned: dict[str, int] = {}
    for reason, digest in settings.items():
        while count := _void(pool, lease, reason, digest):
            returned[reason] = returned.get(reason, 0) + count
            beat()
    return returned


def _void(pool: Pool, lease: Lease, reason: str, digest: str) -> int:
    with pool.transaction() as cursor:
        fence(cursor, lease)
        parameters = {"stream": lease.stream, "reason": reason, "settings": digest, "limit": BATCH_ROWS}
        cursor.execute(QUERIES["ledger_void"], parameters)
        return cursor.rowcount
