"""Makes an earlier adapter current again."""

from __future__ import annotations

from db import adapters
from db.pool import Pool
from service.errors import PreconditionError, UsageError
from service.publish.folders import sync_pointer, verify_adapter
from service.settings.home import Home
from trainer.run_dir import RunDirectoryError


def roll_back(pool: Pool, home: Home, stream: str, version: int) -> str:
    """Verify an earlier version, make it current and swap the pointer. Returns what was done.

    Raises:
        UsageError: its folder does not exist.
        PreconditionError: its folder is damaged, or the pointer cannot be updated.
        DatabaseError: the stream has no such version, or it was withdrawn.
    """
    if not 0 < version < 2**63:
        raise UsageError(f"{version} is not a version. `codelupe adapters` lists them")
    if not home.adapter(version).is_dir():
        raise UsageError(f"{home.adapter(version)} does not exist. Retention removed it, or it was never published")
    for adapter in adapters.history(pool, stream, among=[version]):
        try:
            verify_adapter(home, adapter)
        except RunDirectoryError as error:
            raise PreconditionError(str(error)) from error
    adapters.roll_back(pool, stream, version)
    try:
        sync_pointer(home, stream, adapters.current(pool, stream))
    except OSError as error:
        raise PreconditionError(
            f"version {version} is current now, but {home.pointer(stream)} cannot be updated: {error}"
        ) from error
    return f"{home.pointer(stream)} points to version {version}"
