"""Rows 1 to 4 and 10: the service and its trainer are killed, or asked to end, at every point and at any moment."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from crashing import Crash
from oracle import Broken
from rows import Done, Row, Trials
from scene import HERE, REAL, STUB, Scene, Service, scene, server

from service.cycle import leadership
from trainer.recipe_file import dump_recipe

BATCH, BATCHES = 24, 9
"""Files of a batch, and batches of a trial: enough runs for a refused one, and for a lineage."""
RECORDED_TIMES = {"service": 3, "stub": 3, "real": 2}
"""So many times that a point is passed: with no adapter yet, with one, and with a refused run behind."""
REAL_BATCHES = 2
CYCLE_SECONDS = 0.9
"""About what a start and a cycle of the stub take: kills fall anywhere in it."""
BLOCK = 10
"""Kills of one lineage before everything in it has to be settled."""
GRACE_SECONDS = 70.0
"""More than what a trainer gets to write its checkpoint."""

Who = Literal["service", "stub", "real"]


# --- row 1: every point ---------------------------------------------------------------------------------------


def with_points(kind: Who, what: list[str]) -> dict[str, object]:
    """Options that let a trainer run under `crashing.py`."""
    python, *rest = STUB if kind == "stub" else REAL
    flags, program = (rest[:1], rest[1:]) if kind == "stub" else ([], rest)
    return {"trainer": (python, *flags, str(HERE / "crashing.py"), *what, "--", *program)}


def fed(one: Scene, service: Service, batches: int = BATCHES) -> bool:
    """Batch after batch, each when the one before is consumed; whether the service ended meanwhile."""
    for _ in range(batches):
        one.produce(BATCH)
        while not one.counted().settled:
            if service.ended(0.02):
                return True
        one.check_pointer()
    return service.ended(0.1)


def points_of(folder: Path, url: str, kind: Who, options: dict[str, object]) -> list[tuple[Who, Crash]]:
    """Every point that a service, a stub or a trainer passes in a few cycles and at a second start."""
    path, listed = folder / f"points-{kind}", []
    what = {"points": path} if kind == "service" else with_points(kind, ["record", str(path)])
    with scene(folder / f"recorded-{kind}", url, f"recorded_{kind}") as one:
        for _ in range(2):
            if fed(one, one.start(**{**options, **what}), REAL_BATCHES if kind == "real" else BATCHES):
                raise Broken(f"a service without a fault ended; {one.said()}")
            assert one.service is not None
            one.service.terminate(GRACE_SECONDS)
    passed = {tuple(line.split(" ")) for line in path.read_text().splitlines()}
    for point, time_ in sorted((p, int(t)) for p, t in passed if int(t) <= RECORDED_TIMES[kind]):
        for when in ("before", "after"):
            listed.append((kind, Crash(point=point, when=when, time=time_)))  # type: ignore[arg-type]
    return listed


@contextmanager
def every_point(folder: Path, sample: bool) -> Iterator[Trials]:
    with server(folder / "postgres") as url:
        listed = points_of(folder, url, "service", {}) + points_of(folder, url, "stub", {})
        real: dict[str, object] = {}
        if pattern := os.environ.get("FAULTS_POINTS"):
            listed = [(kind, crash) for kind, crash in listed if re.search(pattern, str(crash))]
        elif sample:
            listed = random.Random(1).sample(listed, 4)
        else:
            with scene(folder / "prepare", url, "prepare") as one:
                real = real_options(one)
            listed += points_of(folder, url, "real", real)

        def trial(number: int) -> Done:
            kind, crash = listed[number]
            options = real if kind == "real" else {}
            with scene(folder / f"trial{number}", url, "every_point") as one:
                if kind == "service":
                    service_at(one, crash)
                else:
                    trainer_at(one, kind, crash, options)
                one.check_pointer()
                one.start(**options)
                one.produce(BATCH)
                one.settle(300)
                assert one.service is not None
                one.service.terminate(GRACE_SECONDS)
            return Done(note=f"{kind}: {crash}")

        yield Trials(number=len(listed), run=trial, names=[f"{kind}: {crash}" for kind, crash in listed])


def service_at(one: Scene, crash: Crash) -> None:
    """A service ends at its point."""
    service = one.start(crash=crash)
    if not fed(one, service) and not service.ended(1.5 * leadership.RENEW_SECONDS):  # some are passed in time alone
        service.process.terminate()  # and some at the end
        service.ended(GRACE_SECONDS)
    if service.process.exitcode != -signal.SIGKILL:
        raise Broken(f"{crash}: the point was not passed; exit code {service.process.exitcode}; {one.said()}")


def trainer_at(one: Scene, kind: Who, crash: Crash, options: dict[str, object]) -> None:
    """Each start of the trainer ends at its point, until the service is killed as well: the next has a whole one."""
    mark = one.folder / "crashed"
    what = with_points(kind, ["crash", crash.point, crash.when, str(crash.time), str(mark)])
    service = one.start(**{**options, **what})
    for _ in range(BATCHES):
        one.produce(BATCH)
        while not (mark.exists() or one.counted().settled):
            if service.ended(0.02):
                raise Broken(f"{crash}: the service ended; {one.said()}")
        if mark.exists():
            break
    else:
        raise Broken(f"{crash}: the point was not passed")
    time.sleep(random.Random(str(crash)).choice((0.0, 0.1, 0.5)))
    service.kill()


# --- rows 2 to 4: any moment ----------------------------------------------------------------------------------


def kill(one: Scene, service: Service, chance: random.Random) -> str:
    """End the service, its trainer, or both; who it was. Where there is no trainer, it is the service."""
    who = chance.choices(("service", "trainer", "both"), (6, 3, 1))[0]
    if who != "service" and not send(trainers(one), signal.SIGKILL):
        who = "service"
    if who != "trainer":
        service.kill()
    return who


def send(pids: list[int], number: signal.Signals) -> int:
    """How many of the processes were still there."""
    found = 0
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue  # it ended by itself
        found += 1
    return found


def met_trainers(one: Scene) -> list[int]:
    """Process ids of live trainers, as soon as there are any; rows are produced until then.

    Raises:
        RuntimeError: none came.
    """
    for _ in range(10):
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            if pids := trainers(one):
                return pids
            time.sleep(0.005)
        one.produce(10)
    raise RuntimeError("no trainer came by")


def trainers(one: Scene) -> list[int]:
    """Process ids of live trainers of this scene, by their command line."""
    home, found = str(one.home.runs), []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if any(word.startswith(home) for word in words) and "run" in words:
                found.append(int(entry.name))
    return found


class Lineages:
    """Scenes for many kills: a new one for each block, everything settled at its end."""

    def __init__(self, folder: Path, url: str, name: str, last: int, **options: object) -> None:
        self._folder, self._url, self._name, self._last, self._options = folder, url, name, last, options
        self._open: tuple[int, Scene] | None = None

    def of(self, number: int) -> Scene:
        """The scene of a trial."""
        block = number // BLOCK
        if self._open is None or self._open[0] != block:
            self.close()
            from scene import new_database

            made = Scene(
                Path(tempfile.mkdtemp(prefix=f"block{block}-", dir=self._folder)),
                new_database(self._url, f"{self._name}_{block}"),
            )
            self._open = (block, made)
        return self._open[1]

    def settle(self, number: int, seconds: float) -> None:
        """At the end of a block all has to be settled."""
        if number % BLOCK == BLOCK - 1 or number == self._last:
            one = self.of(number)
            if one.service is None or one.service.process.exitcode is not None:
                one.start(**self._options)
            one.settle(seconds)
            self.close()

    def close(self) -> None:
        if self._open is not None:
            self._open[1].stop()
            self._open = None


@contextmanager
def stub_kills(folder: Path, sample: bool) -> Iterator[Trials]:
    number = 10 if sample else 2000
    with server(folder / "postgres") as url:
        lineages = Lineages(folder, url, "stub_kills", number - 1)

        def trial(n: int) -> Done:
            chance, one = random.Random(n), lineages.of(n)
            one.produce(chance.randrange(4, 30))
            service = one.service
            if service is None or service.process.exitcode is not None:
                service = one.start()
            time.sleep(chance.uniform(0, CYCLE_SECONDS))
            who = kill(one, service, chance)
            one.check_pointer()
            lineages.settle(n, 60)
            return Done(note=who)

        yield Trials(number=number, run=trial)
        lineages.close()


@contextmanager
def second_kills(folder: Path, sample: bool) -> Iterator[Trials]:
    number = 2 if sample else 100
    with server(folder / "postgres") as url:

        def trial(n: int) -> Done:
            chance = random.Random(n)
            with scene(folder / f"trial{n}", url, "second_kills") as one:
                one.produce(30)
                service = one.start()
                time.sleep(chance.uniform(0.1, CYCLE_SECONDS))
                service.kill()
                for _ in range(chance.choice((1, 1, 2, 3))):
                    service = one.start()
                    time.sleep(chance.uniform(0, 0.4))
                    service.kill()
                    one.check_pointer()
                one.start()
                one.settle()
            return Done()

        yield Trials(number=number, run=trial)


def real_options(one: Scene) -> dict[str, object]:
    """The real trainer, with the tiny model's revision as it is."""
    recipe = one.folder / "recipe.yaml"
    recipe.write_text(dump_recipe(one.settings.recipe))
    done = subprocess.run(
        [*REAL, "prepare", str(recipe)], cwd=HERE.parents[1], capture_output=True, text=True, check=True
    )
    revision = json.loads(done.stdout.splitlines()[-1])["revision"]
    return {"trainer": REAL, "revision": revision}


@contextmanager
def real_kills(folder: Path, sample: bool) -> Iterator[Trials]:
    number = 1 if sample else 100
    with server(folder / "postgres") as url:
        with scene(folder / "prepare", url, "prepare") as one:
            options = real_options(one)
        lineages = Lineages(folder, url, "real_kills", number - 1, **options)

        def trial(n: int) -> Done:
            chance, one = random.Random(n), lineages.of(n)
            one.produce(16)
            service = one.service
            if service is None or service.process.exitcode is not None:
                service = one.start(**options)
            time.sleep(chance.uniform(0, 20))
            who = kill(one, service, chance)
            one.check_pointer()
            lineages.settle(n, 300)
            return Done(note=who)

        yield Trials(number=number, run=trial)
        lineages.close()


# --- row 10: asked to end -------------------------------------------------------------------------------------


@contextmanager
def terminations(folder: Path, sample: bool) -> Iterator[Trials]:
    number = 5 if sample else 100
    with server(folder / "postgres") as url:
        lineages = Lineages(folder, url, "terminations", number - 1)

        def trial(n: int) -> Done:
            chance, one = random.Random(n), lineages.of(n)
            one.produce(chance.randrange(4, 30))
            service = one.start()
            time.sleep(chance.uniform(0.05, CYCLE_SECONDS))
            seconds = service.terminate(GRACE_SECONDS)
            if left := trainers(one):
                raise Broken(f"trainers are left: {left}")
            one.check_pointer()
            lineages.settle(n, 60)
            return Done(note=f"{seconds:.2f} s")

        yield Trials(number=number, run=trial)
        lineages.close()


SAME = "0 lost, 0 twice, pointer valid"
ROWS = {
    1: Row(fault="`kill -9` before and after each side effect, the first time and the second", unit="points",
           passes=SAME, prepare=every_point),
    2: Row(fault="`kill -9` at random moments of a cycle with the tiny model", unit="kills", passes=SAME,
           prepare=real_kills),
    3: Row(fault="`kill -9` at random moments, a stub for the trainer", unit="kills", passes=SAME, prepare=stub_kills),
    4: Row(fault="a second kill, or a third and a fourth, during recovery", unit="recoveries", passes=SAME,
           prepare=second_kills),
    10: Row(fault="SIGTERM at random moments", unit="times", passes="clean exit within the grace period",
            prepare=terminations),
}  # fmt: skip
