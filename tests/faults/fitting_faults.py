"""Row 13: training steps that fail."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg2
from failing import MARK
from kills import real_options
from oracle import Broken, count, lineage
from rows import Done, Row, Trials
from safetensors.torch import load_file
from scene import HERE, REAL, Scene, code, scene, server

from db.source import HeldOutPlace
from service.admission.split import split_position
from trainer.records import EventTail
from trainer.run_dir import RunDirectory, read_json

KINDS = ("nan", "row", "large", "together", "once")
"""The failures that `failing.py` injects."""
MARKED = {"nan": 3, "row": 3, "together": 1, "once": 0, "large": 0}
"""The number of marked rows in a trial."""
FIT_SECONDS = 3600.0
"""The limit for all runs of a trial, on a machine with other work."""


def kind_of(number: int) -> str:
    """Return the kind of a trial's failure. Each reason has 50 injections.

    Memory: 8 trials with 3 rows each, and 26 trials that succeed with smaller packs. Loss: 10 trials with 3 rows each,
    and 10 trials of each other kind.
    """
    return next(kind for kind, end in (("nan", 10), ("row", 18), ("large", 44), ("together", 54), ("once", 64))
                if number < end)  # fmt: skip


def place_of(n: int) -> tuple[str, str]:
    """Return the repository and path of a file."""
    return f"r{n % 5}", f"p/{n}.py"


def trained_places(files: int) -> list[int]:
    """Return files that no claim holds out: the half with the largest hashes of their place."""

    def position(n: int) -> float:
        repository, path = place_of(n)
        return split_position(HeldOutPlace(file_id=0, repository=repository, path=path), "file")

    return sorted(range(files), key=position)[(files + 1) // 2 :]


def produce_marked(one: Scene, files: int, places: list[int]) -> list[int]:
    """Insert files, and mark those at `places`. Return the ids of the marked ones."""
    connection = psycopg2.connect(one.url)
    marked = []
    with connection, connection.cursor() as cursor:
        for place in range(files):
            text = code(place) + (f"{MARK} = {place}\n" if place in places else "")
            cursor.execute(
                "insert into code_files (repository, path, language, content, quality_score) "
                "values (%s, %s, 'python', %s, 90) returning id",
                (*place_of(place), text),
            )
            (file_id,) = cursor.fetchone() or (0,)
            one.log.add([file_id])
            marked += [file_id] if place in places else []
    connection.close()
    return marked


def ledger(one: Scene) -> dict[int, tuple[str, str | None]]:
    """Return the disposition and reason of each row."""
    connection = psycopg2.connect(one.url)
    with connection, connection.cursor() as cursor:
        cursor.execute("select file_id, disposition, reason from codelupe.ledger")
        found = {file_id: (disposition, reason) for file_id, disposition, reason in cursor.fetchall()}
    connection.close()
    return found


def settle_around(one: Scene, seconds: float) -> dict[int, str | None]:
    """Wait until all rows are consumed or quarantined. Return the quarantined ones with their reasons."""
    deadline = time.monotonic() + seconds
    while True:
        quarantined = {n: reason for n, (word, reason) in ledger(one).items() if word == "quarantined"}
        found = count(one.log.ids(), one.pointer, one.home.runs, refused=list(quarantined))
        if found.settled:
            one.check()
            return quarantined
        if time.monotonic() > deadline or found.twice or found.phantom:
            raise Broken(f"{found}; quarantined: {quarantined}; {one.log_tail()}")
        if one.service is None or one.service.process.exitcode is not None:
            raise Broken(f"the service ended; {found}; {one.log_tail()}")
        time.sleep(0.1)


def check_finite(one: Scene) -> None:
    """Check that every published loss and weight is finite."""
    for run in lineage(one.pointer, one.home.runs):
        report = read_json(run.report)
        losses = [report["evaluation"][which]["loss"] for which in ("anchor", "current", "candidate")]
        if not all(math.isfinite(loss) for loss in losses):
            raise Broken(f"{run.root} was published with the losses {losses}")
        folder = one.home.adapter(report["run_id"])
        if folder.exists():
            for name, tensor in load_file(folder / "adapter_model.safetensors").items():
                if not tensor.isfinite().all():
                    raise Broken(f"{folder}: {name} is not finite")


def runs_of(one: Scene) -> list[RunDirectory]:
    return [RunDirectory(path) for path in sorted(one.home.runs.iterdir()) if path.name.isdigit()]


def count_events(one: Scene, name: str) -> int:
    """Return how many events have this name."""
    return sum(event["event"] == name for run in runs_of(one) for event in EventTail(run.events).new())


@contextmanager
def failing_steps(folder: Path, sample: bool) -> Iterator[Trials]:
    numbers = [0] if sample else list(range(64))
    with server(folder / "postgres") as url:
        with scene(folder / "prepare", url, "prepare") as one:
            options = real_options(one)

        def trial(place: int) -> Done:
            number = numbers[place]
            kind, chance = kind_of(number), random.Random(number)
            files, marks = chance.randrange(18, 40), min(MARKED[kind], 1 if sample else 3)
            with scene(folder / f"trial{number}", url, f"failing_{number}") as one:
                marked = produce_marked(one, files, chance.sample(trained_places(files), marks))
                launcher = (REAL[0], str(HERE / "failing.py"), kind, str(one.folder / "flag"), "--", *REAL[1:])
                one.start(**{**options, "trainer": launcher})
                quarantined = settle_around(one, FIT_SECONDS)
                check_finite(one)
                check_outcome(one, kind, marked, quarantined)
                made = len(runs_of(one))
            return Done(count=max(1, len(marked)), note=f"{kind}, {files} files, {made} runs")

        yield Trials(number=len(numbers), run=trial)


def check_outcome(one: Scene, kind: str, marked: list[int], quarantined: dict[int, str | None]) -> None:
    """Check which rows were quarantined, and why."""
    reason = "out_of_memory" if kind in ("row", "large") else "non_finite"
    if wrong := {n: why for n, why in quarantined.items() if n not in marked or why != reason}:
        raise Broken(f"{kind}: quarantined without a reason: {wrong}")
    if (spared := set(marked) - set(quarantined)) and kind in ("nan", "row"):
        raise Broken(f"{kind}: marked rows were not quarantined: {spared}")
    smaller = count_events(one, "out_of_memory")
    if (smaller > 0) != (kind in ("row", "large")):
        raise Broken(f"{kind}: {smaller} out_of_memory events")
    if kind in ("together", "once") and not count_events(one, "non_finite"):
        raise Broken(f"{kind}: nothing failed")


ROWS = {
    13: Row(fault="out of memory and non-finite loss, for particular rows, packs and steps", unit="injections",
            passes="smaller packs, or the rows quarantined and all others consumed; nothing non-finite published",
            prepare=failing_steps),
}  # fmt: skip
