"""Row 11: the disk is full, or reports write errors."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from full import DiskFault
from kills import BATCH, BATCHES, GRACE_SECONDS, feed_batches, real_options
from oracle import Broken, ProducerLog, check_pointer
from rows import Done, Row, Trials
from scene import HERE, REAL, STUB, Scene, new_database, scene, server

ERRORS = ("ENOSPC", "EIO")
TMPFS_BYTES = 700 * 1024**2
"""More than twice what a run needs. Only written files take memory."""
FULL_TRIALS, REAL_TRIALS = 40, 10
BEFORE_THE_LOOP = (
    "service.settings.home.Home.prepare",
    "service.settings.home.only_service",
    "service.settings.home.Home.instance",
    "service.logs.set_up",
)
"""Points before the service's loop. The service ends with an error there, and its supervisor restarts it."""
HARMLESS = (*BEFORE_THE_LOOP, "service.logs.event", "service.logs._LogFile", "service.publish.folders.tidy_run:rmdir")
"""Points that nothing else depends on: a log line, or a folder that the next start removes."""
FULL_SECONDS = 0.8
"""How long the disk stays full."""


# --- an error at every point ----------------------------------------------------------------------------------


def launcher(kind: str, what: list[str]) -> dict[str, object]:
    """Return the options that run a trainer under `full.py`."""
    program = STUB if kind == "stub" else REAL
    return {"trainer": (program[0], *program[1:-1], str(HERE / "full.py"), *what, "--", *program[-1:])}


def points(folder: Path, url: str) -> list[tuple[str, str, int]]:
    """Return (service or stub, point, time) for every write in a few cycles and at a second start."""
    listed = set()
    for kind in ("service", "stub"):
        path = folder / f"points-{kind}"
        options = {"disk_points": path} if kind == "service" else launcher("stub", ["record", str(path)])
        with scene(folder / f"recorded-{kind}", url, f"recorded_{kind}") as one:
            for _ in range(2):
                if feed_batches(one, one.start(**options)):
                    raise Broken(f"a service without a fault ended; {one.log_tail()}")
                assert one.service is not None
                one.service.terminate(GRACE_SECONDS)
        listed |= {(kind, point, int(n)) for point, n in (line.split(" ") for line in path.read_text().splitlines())}
    return sorted((kind, point, n) for kind, point, n in listed if n <= 2)


def at_point(one: Scene, kind: str, fault: DiskFault) -> Done:
    """Let a point fail until there is room again. After that, every row must be consumed."""
    fault.flag.touch()
    hit, board = fault.flag.with_name("full.hit"), one.folder / "board"
    what = [fault.point, str(fault.time), fault.error, str(fault.flag)]
    options: dict[str, object] = {"disk": fault} if kind == "service" else launcher("stub", what)
    service = one.start(board=board, **options)
    ended = False
    for _ in range(BATCHES):
        one.produce(BATCH)
        deadline = time.monotonic() + 30
        while not one.counted().settled and not hit.exists():
            if (ended := service.ended(0.02)) or time.monotonic() > deadline:
                break
        if hit.exists() or ended:
            break
    else:
        service.process.terminate()  # some points are passed only at the end
        service.ended(GRACE_SECONDS)
    if not hit.exists():
        raise Broken(f"{fault}: the point was not passed; {one.log_tail()}")
    time.sleep(FULL_SECONDS)
    deadline = time.monotonic() + 20
    while not (reported := board.exists() and "degraded" in board.read_text()) and time.monotonic() < deadline:
        if fault.point.startswith(HARMLESS) or service.ended(0.02):
            break
    check_pointer(one.pointer)
    stopped = service.process.exitcode is not None
    fault.flag.unlink()
    if stopped and not fault.point.startswith(BEFORE_THE_LOOP) and not ended_on_request(one):
        raise Broken(f"{fault}: the service ended with {service.process.exitcode}; {one.log_tail()}")
    if stopped:
        one.start()
    one.produce(BATCH)
    one.settle()
    assert one.service is not None
    one.service.terminate(GRACE_SECONDS)
    if not (reported or stopped or fault.point.startswith(HARMLESS)):
        raise Broken(f"{fault}: the board did not report it: {board.read_text()}")
    return Done(note=f"{kind}: {fault}{', on the board' if reported else ''}")


def ended_on_request(one: Scene) -> bool:
    return one.service is not None and one.service.process.exitcode in (0, -15)


# --- a disk that is full --------------------------------------------------------------------------------------


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Mount a separate tmpfs."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={TMPFS_BYTES}", "codelupe-faults", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, left: int) -> Path:
    """Fill the disk up to `left` bytes."""
    path = folder / "filler"
    with path.open("wb") as file:
        while True:
            try:
                os.posix_fallocate(file.fileno(), 0, max(1, shutil.disk_usage(folder).free - left))
                return path
            except OSError:  # another process wrote at the same time
                file.truncate(0)


def on_full_disk(one: Scene, chance: random.Random, options: dict[str, object], seconds: float) -> Done:
    """Fill the disk at a random moment, and free it some time later."""
    board = one.folder.parent.with_name(f"{one.folder.parent.name}-board")
    one.start(board=board, **options)
    one.produce(BATCH)
    time.sleep(chance.uniform(0, seconds))
    filler = fill(one.folder, chance.choice((0, 0, 4096, 40_000, 400_000)))
    check_pointer(one.pointer)
    one.produce(BATCH)  # the database and the producer's log are on another disk
    deadline = time.monotonic() + max(5.0, 5 * seconds)
    while time.monotonic() < deadline and not (board.exists() and "free for" in board.read_text()):
        check_pointer(one.pointer)
        time.sleep(0.05)
    messages = board.read_text()
    service = one.service
    if service is None or service.process.exitcode is not None:
        raise Broken(f"the service ended; {one.log_tail()}; {messages}")
    filler.unlink()
    one.settle(60 + 20 * seconds)
    service.terminate(GRACE_SECONDS)
    if not any(word in messages for word in ("free for", "No space left")):
        raise Broken(f"the board did not report it: {messages}")
    return Done(note=f"tmpfs: {'paused before a claim' if 'free for' in messages else 'failed during a run'}")


@contextmanager
def full_disks(folder: Path, sample: bool) -> Iterator[Trials]:
    with server(folder / "postgres") as url:
        listed = [(kind, DiskFault(point=point, time=n, error=error, flag=folder))
                  for kind, point, n in points(folder, url) for error in ERRORS]  # fmt: skip
        if sample:
            listed = random.Random(3).sample(listed, 2)
        full = 1 if sample else FULL_TRIALS
        real: dict[str, object] = {}

        def trial(number: int) -> Done:
            if number < len(listed):
                kind, fault = listed[number]
                with scene(folder / f"trial{number}", url, "disk") as one:
                    return at_point(one, kind, replace(fault, flag=one.folder / "full"))
            chance, is_real = random.Random(number), number >= len(listed) + full
            with small_disk(folder / f"trial{number}") as place:
                one = Scene(place / "scene", new_database(url, "full_disk"))
                one.log = ProducerLog(folder / f"produced{number}")
                try:
                    if is_real:
                        real.update(real or real_options(one))
                    return on_full_disk(one, chance, dict(real) if is_real else {}, 20.0 if is_real else 0.6)
                finally:
                    one.stop()

        yield Trials(number=len(listed) + full + (0 if sample else REAL_TRIALS), run=trial,
                     names=[f"{kind}: {fault}" for kind, fault in listed])  # fmt: skip


ROWS = {
    11: Row(fault="a full disk or an I/O error at the first and second pass of each write; a full tmpfs",
            unit="faults", passes="live adapter intact, reported on the board, continues when there is room",
            prepare=full_disks),
}  # fmt: skip
