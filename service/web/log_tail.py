"""The last lines of the service's log file."""

from __future__ import annotations

from pathlib import Path

from service.web.files import read_part

TAIL_BYTES = 200_000
LONGEST_LINE = 2_000
"""Characters. A longer line is cut."""


def log_tail(path: Path, lines: int) -> list[str]:
    """Return the last lines of a log file, oldest first. Empty if there is no file."""
    try:
        data, size = read_part(path, -TAIL_BYTES, TAIL_BYTES)
    except OSError:
        return []
    if size > TAIL_BYTES:
        data = data[data.find(b"\n") + 1 :]
    found = data.decode(errors="replace").splitlines()[-lines:]
    return [line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]}…" for line in found]
