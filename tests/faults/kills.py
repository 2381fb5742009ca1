"""Rows 1 to 4 and 10: the service and its trainer are killed at every point and at random moments, or get SIGTERM."""

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
"""Files per batch and batches per trial. These give enough runs for a refused one and for a lineage."""
RECORDED_TIMES = {"service": 3, "stub": 3, "real": 2}
"""How many passes of each point are tried: without an adapter, with one, and after a refused run."""
REAL_BATCHES = 2
CYCLE_SECONDS = 0.9
"""About the time of a start and a cycle with the stub. Kills happen at random within it."""
BLOCK = 10
"""How often one lineage is killed before every row in it must be settled."""
GRACE_SECONDS = 70.0
"""Longer than the time that a trainer has to write its checkpoint."""

Kind = Literal["service", "stub", "real"]


# --- row 1: every point ---------------------------------------------------------------------------------------


def with_points(kind: Kind, what: list[str]) -> dict[str, object]:
    """Return the options that run a trainer under `crashing.py`."""
    python, *rest = STUB if kind == "stub" else REAL
    flags, program = (rest[:1], rest[1:]) if kind == "stub" else ([], rest)
    return {"trainer": (python, *flags, str(HERE / "crashing.py"), *what, "--", *program)}


def feed_batches(one: Scene, service: Service, batches: int = BATCHES) -> bool:
    """Produce batches, each after the previous one is consumed. Return whether the service ended meanwhile."""
    for _ in range(batches):
        one.produce(BATCH)
        while not one.counted().settled:
            if service.ended(0.02):
                return True
        one.check_pointer()
    return service.ended(0.1)


def points_of(folder: Path, url: str, kind: Kind, options: dict[str, object]) -> list[tuple[Kind, Crash]]:
    """List every point that a service, a stub or a trainer passes in a few cycles and at a second start."""
    path, listed = folder / f"points-{kind}", []
    what = {"points": path} if kind == "service" else with_points(kind, ["record", str(path)])
    with scene(folder / f"recorded-{kind}", url, f"recorded_{kind}") as one:
        for _ in range(2):
            if feed_batches(one, one.start(**{**options, **what}), REAL_BATCHES if kind == "real" else BATCHES):
                raise Broken(f"a service without a fault ended; {one.log_tail()}")
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
    """Kill a service at a point."""
    service = one.start(crash=crash)
    # The service passes some points only after a while, and some only at its end.
    if not feed_batches(one, service) and not service.ended(1.5 * leadership.RENEW_SECONDS):
        service.process.terminate()
        service.ended(GRACE_SECONDS)
    if service.process.exitcode != -signal.SIGKILL:
        raise Broken(f"{crash}: the point was not passed; exit code {service.process.exitcode}; {one.log_tail()}")


def trainer_at(one: Scene, kind: Kind, crash: Crash, options: dict[str, object]) -> None:
    """Kill each start of the trainer at a point, then kill the service. The next service has a working trainer."""
    mark = one.folder / "crashed"
    what = with_points(kind, ["crash", crash.point, crash.when, str(crash.time), str(mark)])
    service = one.start(**{**options, **what})
    for _ in range(BATCHES):
        one.produce(BATCH)
        while not (mark.exists() or one.counted().settled):
            if service.ended(0.02):
                raise Broken(f"{crash}: the service ended; {one.log_tail()}")
        if mark.exists():
            break
    else:
        raise Broken(f"{crash}: the point was not passed")
    time.sleep(random.Random(str(crash)).choice((0.0, 0.1, 0.5)))
    service.kill()


# --- rows 2 to 4: any moment ----------------------------------------------------------------------------------


def kill(one: Scene, service: Service, chance: random.Random) -> str:
    """Kill the service, its trainer, or both. Return which. Without a trainer, kill the service."""
    killed = chance.choices(("service", "trainer", "both"), (6, 3, 1))[0]
    if killed != "service" and not send_signal(trainers(one), signal.SIGKILL):
        killed = "service"
    if killed != "trainer":
        service.kill()
    return killed


def send_signal(pids: list[int], number: signal.Signals) -> int:
    """Send a signal to processes. Return how many of them still existed."""
    found = 0
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue  # the process has ended
        found += 1
    return found


def await_trainers(one: Scene) -> list[int]:
    """Produce rows until there are live trainers. Return their process ids.

    Raises:
        RuntimeError: no trainer started.
    """
    for _ in range(10):
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            if pids := trainers(one):
                return pids
            time.sleep(0.005)
        one.produce(10)
    raise RuntimeError("no trainer started")


def trainers(one: Scene) -> list[int]:
    """Return the process ids of this scene's live trainers, found by their command lines."""
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
    """Scenes for many kills. Each block has a new scene, and every row is settled at its end."""

    def __init__(self, folder: Path, url: str, name: str, last: int, **options: object) -> None:
        self._folder, self._url, self._name, self._last, self._options = folder, url, name, last, options
        self._open: tuple[int, Scene] | None = None

    def of(self, number: int) -> Scene:
        """Return the scene of a trial."""
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
        """Wait at the end of a block until every row is settled."""
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
            killed = kill(one, service, chance)
            one.check_pointer()
            lineages.settle(n, 60)
            return Done(note=killed)

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
    """Return the options for the real trainer and the tiny model's real revision."""
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
            killed = kill(one, service, chance)
            one.check_pointer()
            lineages.settle(n, 300)
            return Done(note=killed)

        yield Trials(number=number, run=trial)
        lineages.close()


# --- row 10: SIGTERM ------------------------------------------------------------------------------------------


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
    1: Row(fault="`kill -9` before and after the first passes of each side effect", unit="points",
           passes=SAME, prepare=every_point),
    2: Row(fault="`kill -9` at random moments of a cycle with the tiny model", unit="kills", passes=SAME,
           prepare=real_kills),
    3: Row(fault="`kill -9` at random moments, with a stub trainer", unit="kills", passes=SAME, prepare=stub_kills),
    4: Row(fault="one to three more kills during recovery", unit="recoveries", passes=SAME,
           prepare=second_kills),
    10: Row(fault="SIGTERM at random moments", unit="times", passes="clean exit within the grace period",
            prepare=terminations),
}  # fmt: skip
