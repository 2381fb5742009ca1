"""`kill -9` at a named point: before or after a side effect on the disk, the database or other processes.

A point is named after the calling function and the effect: `service.cycle.claim.claim_run:commit`. The program itself
contains no crash points. This module wraps every call that changes something outside the process, and finds out which
function made it. `record` lists the points as they are passed. `crash_at` ends the process at one of them.

A trainer is started as a program:

    python crashing.py record FILE -- PROGRAM …
    python crashing.py crash POINT before|after TIME MARK -- PROGRAM …

The second form creates the file MARK when it ends the process.
"""

from __future__ import annotations

import importlib.util
import os
import runpy
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[2]
PASS_THROUGH = ("db/pool.py", "db/connection.py", "trainer/run_dir.py", "trainer/records.py", "db/lease.py")
"""Files that only pass effects on. The point is named after their caller."""
PACKAGES = ("service/", "db/", "trainer/", "tests/faults/stub_trainer.py")
EFFECTS = (
    "rename",
    "replace",
    "unlink",
    "mkdir",
    "rmdir",
    "symlink",
    "fsync",
    "killpg",
    "utime",
    "truncate",
    "ftruncate",
)
"""Functions of the module os."""


@dataclass(frozen=True, kw_only=True)
class Crash:
    """The point at which a process ends."""

    point: str
    when: Literal["before", "after"]
    time: int
    """How many times the point has been passed; 1 is the first time."""

    def __str__(self) -> str:
        return f"{self.when} {self.point}, time {self.time}"


class Points:
    """Counts the points that a process passes."""

    def __init__(self, on_point: Callable[[str, str, int], None]) -> None:
        self._on_point = on_point
        self._passed: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._inside = threading.local()

    def wrap(self, effect: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            if getattr(self._inside, "now", False):
                return call(*arguments, **options)
            name = caller(sys._getframe(1))
            if name is None:
                return call(*arguments, **options)
            point = f"{name}:{effect}"
            with self._lock:
                self._passed[point] += 1
                time = self._passed[point]
            self._inside.now = True
            try:
                self._on_point(point, "before", time)
                result = call(*arguments, **options)
                self._on_point(point, "after", time)
                return result
            finally:
                self._inside.now = False

        return wrapped


def caller(frame: FrameType | None) -> str | None:
    """Return `package.module.function` of the program's code that has the effect, or None if none is on the stack."""
    if frame is not None and frame.f_code.co_qualname == "LimitedConnection.__init__":
        return None  # opening a connection commits nothing
    fallback = None
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(str(ROOT)):
            name = path[len(str(ROOT)) + 1 :]
            if name.startswith(PACKAGES):
                full = f"{name.removesuffix('.py').replace('/', '.')}.{frame.f_code.co_qualname}"
                if not name.startswith(PASS_THROUGH):
                    return full
                fallback = fallback or full
        frame = frame.f_back
    return fallback


def install(on_point: Callable[[str, str, int], None]) -> None:
    """Wrap every side effect of this process."""
    points = Points(on_point)
    for name in EFFECTS:
        setattr(os, name, points.wrap(name, getattr(os, name)))
    shutil.rmtree = points.wrap("rmtree", shutil.rmtree)
    subprocess.Popen.__init__ = points.wrap("start", subprocess.Popen.__init__)  # type: ignore[method-assign]
    if importlib.util.find_spec("psycopg2"):  # the stub cannot import other packages
        from db.connection import LimitedConnection

        LimitedConnection.commit = points.wrap("commit", LimitedConnection.commit)  # type: ignore[method-assign]


def crash_at(crash: Crash, mark: Path | None = None) -> None:
    """Kill this process when it reaches the point. Create the file `mark` first, if there is one."""

    def on_point(point: str, when: str, time: int) -> None:
        if (point, when, time) == (crash.point, crash.when, crash.time):
            if mark is not None:
                os.close(os.open(mark, os.O_CREAT | os.O_WRONLY))
            os.kill(os.getpid(), signal.SIGKILL)

    install(on_point)


def record(path: Path, wrap: Callable[[Callable[[str, str, int], None]], None] = install) -> None:
    """Write the points that this process passes to a file, one `point time` per line."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def on_point(point: str, when: str, time: int) -> None:
        if when == "after":
            os.write(descriptor, f"{point} {time}\n".encode())

    wrap(on_point)


def start(program: list[str]) -> None:
    """Run a program in this process: a script, or `-m` and a module, with its arguments."""
    sys.path.insert(0, str(ROOT))
    if program[0] == "-m":
        sys.argv = program[1:]
        runpy.run_module(program[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = program
        runpy.run_path(program[0], run_name="__main__")


def main(arguments: list[str]) -> None:
    """Run a program, and record its points or end it at one of them."""
    split = arguments.index("--")
    what, program = arguments[:split], arguments[split + 1 :]
    match what:
        case ["record", path]:
            record(Path(path))
        case ["crash", point, ("before" | "after") as when, time, mark]:
            crash_at(Crash(point=point, when=when, time=int(time)), Path(mark))
    start(program)


if __name__ == "__main__":
    main(sys.argv[1:])
