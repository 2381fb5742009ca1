"""Disk errors at a named point: a write, a rename or an fsync fails with ENOSPC or EIO.

Points are found as in `crashing.py`. Here, opening a file for writing and writing to it are points too. A point fails
from a given pass on, while a file (the flag) exists. A trainer is started as a program:

    python full.py record FILE -- PROGRAM …
    python full.py POINT TIME ERROR FLAG -- PROGRAM …
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import crashing
from crashing import EFFECTS, Points, start

NOT_OF_DISKS = ("killpg", "utime")
EVERYWHERE = ""
"""Stands for every point of the process."""
_open = io.open


@dataclass(frozen=True, kw_only=True)
class DiskFault:
    """An error, and the point at which it occurs."""

    point: str
    time: int
    """The error occurs from this pass on."""
    error: str
    """ENOSPC or EIO."""
    flag: Path
    """The error occurs while this file exists. It creates `<flag>.hit`."""

    def __str__(self) -> str:
        return f"{self.error} at {self.point}, from time {self.time} on"


def install(on_point: Callable[[str, str, int], None]) -> None:
    """Wrap every call of this process that changes a disk."""
    points = Points(on_point)
    for name in EFFECTS:
        if name not in NOT_OF_DISKS:
            setattr(os, name, points.wrap(name, getattr(os, name)))
    opened = points.wrap("open", _open)

    def opening(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if not any(letter in mode for letter in "wax+") or isinstance(file, int):
            return _open(file, mode, *arguments, **options)
        made = opened(file, mode, *arguments, **options)
        itself, write = weakref.ref(made), type(made).write  # a strong reference to itself would delay its closing
        made.write = points.wrap("write", lambda data: write(itself(), data))
        return made

    io.open = builtins.open = opening  # type: ignore[assignment]


def fail_at(fault: DiskFault) -> None:
    """Inject a fault into this process."""
    hit = fault.flag.with_name(fault.flag.name + ".hit")

    def on_point(point: str, when: str, time: int) -> None:
        if fault.point in (point, EVERYWHERE) and when == "before" and time >= fault.time and fault.flag.exists():
            os.close(os.open(hit, os.O_CREAT | os.O_WRONLY))
            number = getattr(errno, fault.error)
            raise OSError(number, os.strerror(number), "injected")

    install(on_point)


def record(path: Path) -> None:
    """Write the points at which this process writes to a file, one `point time` per line."""
    crashing.record(path, install)


def main(arguments: list[str]) -> None:
    """Run a program, and record its points or inject a fault at one of them."""
    split = arguments.index("--")
    what, program = arguments[:split], arguments[split + 1 :]
    match what:
        case ["record", path]:
            record(Path(path))
        case [point, time, error, flag]:
            fail_at(DiskFault(point=point, time=int(time), error=error, flag=Path(flag)))
    start(program)


if __name__ == "__main__":
    main(sys.argv[1:])
