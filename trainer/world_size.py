"""The number of processes of a run. (no torch)"""

from __future__ import annotations

import os


def world_size() -> int:
    """Number of processes that train this run, as the launcher says."""
    return int(os.environ.get("WORLD_SIZE", "1"))
