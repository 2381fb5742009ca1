"""Reads files that others write. Never waits: a pipe or a device is refused like a file that is not there."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def read_part(path: Path, offset: int, most_bytes: int) -> tuple[bytes, int]:
    """Return at most `most_bytes` from an offset, and the size of the file. A negative offset counts from the end.

    Raises:
        OSError: it is missing, not an ordinary file, or cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(f"{path} is not an ordinary file")
        file.seek(max(0, found.st_size + offset) if offset < 0 else offset)
        return file.read(most_bytes), found.st_size
