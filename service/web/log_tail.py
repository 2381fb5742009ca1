"""The last lines of the service's log file."""

from __future__ import annotations

from pathlib import Path

TAIL_BYTES = 200_000
LONGEST_LINE = 2_000
"""Characters. A longer line is cut."""


def log_tail(path: Path, lines: int) -> list[str]:
    """Return the last lines of a log file, oldest first. Empty if there is no file."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL_BYTES))
            data = file.read(TAIL_BYTES)
    except OSError:
        return []
    if size > TAIL_BYTES:
        data = data[data.find(b"\n") + 1 :]
    found = data.decode(errors="replace").splitlines()[-lines:]
    return [line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]}…" for line in found]
