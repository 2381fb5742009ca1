"""Rows 26 to 28: one process of a run, the launcher of its processes, or the service is killed at random moments.

Two processes train each run, with the real trainer and the tiny model. A run is killed up to three times, and goes on
each time. It must end as a run that nobody killed: each step and row once, and the same adapter.
"""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from kills import real_options, send_signal
from oracle import Broken
from rows import Done, Row, Trials
from safetensors.torch import load_file
from scene import Scene, scene, server

from service.cycle.launch import TrainerProcess
from trainer.ranks import SETTLE_SECONDS, STOP_SECONDS
from trainer.records import EventTail, read_outcomes
from trainer.run_dir import RunDirectory

KILLS = 3
"""How often a run is killed, unless it ends before."""
RUNS = 52
FILES = 26
PROCESSES = 2
RECIPE = {
    "distributed.launcher": "torchrun",
    "distributed.processes": PROCESSES,
    "training.batch_size": 2,
    "training.gradient_accumulation_steps": 1,
    "training.num_epochs": 2,
    "evaluation.interval_fraction": 0.25,
    "tracking.sample_predictions": 0,
}
RANK_SECONDS = SETTLE_SECONDS + STOP_SECONDS + 10.0
"""After one process was killed, the others end within this time. The last part is for a machine with other work."""
LAUNCHER_SECONDS = 60.0
"""The same after the launcher or the service was killed. A process that waits for another ends after 50 seconds."""
RUN_SECONDS = 300.0
LATE_STEPS = 3
"""A process whose launcher was killed stops after the step under way. The other steps are for a slow machine."""
FROZEN_SECONDS = 12.0
"""Longer than a start takes until it would train, if it did not wait for the processes of the one before."""


@dataclass(frozen=True, kw_only=True)
class Whole:
    """A run that nobody killed."""

    inputs: RunDirectory
    """The run directory before its first start."""
    run: RunDirectory
    seconds: float


# --- what is looked at ----------------------------------------------------------------------------------------


def processes_of(folder: Path) -> dict[int, int | None]:
    """Return the trainer's processes whose command line names a run in a folder: their rank, or None, by id."""
    found: dict[int, int | None] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if "run" not in words or not any(word.startswith(str(folder)) for word in words):
                    continue
                variables = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue  # it has just ended
            ranks = [int(word.removeprefix("RANK=")) for word in variables if word.startswith("RANK=")]
            found[int(entry.name)] = ranks[0] if ranks else None
    return found


def events_of(run: RunDirectory) -> list[dict[str, Any]]:
    return list(EventTail(run.events).new()) if run.events.exists() else []


def starters(run: RunDirectory) -> set[int]:
    """Return the ids of the processes that began to train a run."""
    return {event["pid"] for event in events_of(run) if event["event"] == "started"}


def last_step(run: RunDirectory) -> int:
    return max((event["step"] for event in events_of(run) if event["event"] == "step"), default=0)


def steps_that_count(run: RunDirectory) -> tuple[list[tuple[int, float]], int]:
    """Return the steps and losses that led to the adapter, and how many steps were made again.

    A start goes on from a checkpoint. What an earlier start did after it does not count.
    """
    made: list[tuple[int, float]] = []
    again = 0
    for event in events_of(run):
        if event["event"] == "started":
            kept = [step for step in made if step[0] <= (event["resumed_from_step"] or 0)]
            again += len(made) - len(kept)
            made = kept
        elif event["event"] == "step":
            made.append((event["step"], event["loss"]))
    return made, again


def check_as_whole(run: RunDirectory, whole: Whole, adapter: Path) -> int:
    """Compare a run that was killed with one that was not. Return how many steps were made again.

    Raises:
        Broken: they differ.
    """
    (expected, _), (found, again) = steps_that_count(whole.run), steps_that_count(run)
    if [step for step, _ in found] != list(range(1, len(expected) + 1)):
        raise Broken(f"the steps {[step for step, _ in found]} instead of 1 to {len(expected)}")
    if found != expected:
        raise Broken(f"other losses: {found} instead of {expected}")
    if sorted(map(str, read_outcomes(run.rows_outcome))) != sorted(map(str, read_outcomes(whole.run.rows_outcome))):
        raise Broken(f"{run.rows_outcome} differs from that of a run that was not killed")
    ours, theirs = (load_file(path / "adapter_model.safetensors") for path in (adapter, whole.run.adapter))
    if ours.keys() != theirs.keys() or not all(torch.equal(ours[name], theirs[name]) for name in ours):
        raise Broken(f"the adapter {adapter} differs from that of a run that was not killed")
    return again


# --- rows 26 and 27: a rank, the launcher ---------------------------------------------------------------------


def copy_inputs(inputs: RunDirectory, root: Path) -> RunDirectory:
    """Copy a run directory that was not started yet."""
    root.mkdir(parents=True)
    for path in (inputs.recipe, inputs.rows, inputs.held_out, inputs.manifest):
        shutil.copy(path, root / path.name)
    return RunDirectory(root)


def finish(run: RunDirectory) -> None:
    """Train a run to its end.

    Raises:
        Broken: it does not end, or not with 0.
    """
    process = TrainerProcess(run, {})
    try:
        if (code := process.wait(RUN_SECONDS)) != 0:
            raise Broken(f"{run.root} ended with {code}: {run.log.read_text()[-2000:]}")
    finally:
        process.kill()


def train_whole(inputs: RunDirectory, root: Path) -> Whole:
    """Train a run that nobody kills."""
    run, began = copy_inputs(inputs, root), time.monotonic()
    finish(run)
    return Whole(inputs=inputs, run=run, seconds=time.monotonic() - began)


def await_moment(run: RunDirectory, process: TrainerProcess, seconds: float | None) -> bool:
    """Wait for the moment of a kill: so many seconds, or the first step. Return whether the run still goes on."""
    deadline = time.monotonic() + (RUN_SECONDS if seconds is None else seconds)
    while time.monotonic() < deadline and not (seconds is None and last_step(run)):
        if process.wait(0.02) is not None:
            return False
    return process.wait(0) is None


def kill_rank(run: RunDirectory, process: TrainerProcess, chance: random.Random, waits: list[float]) -> bool:
    """Kill one process of a run. The others end, and the launcher names it. Return whether it was there.

    Args:
        waits: gets the seconds until the others ended
    """
    rank = chance.randrange(PROCESSES)
    while process.wait(0.02) is None:  # a launcher starts its processes after a while
        pids = [pid for pid, found in processes_of(run.root).items() if found == rank]
        if send_signal(pids, signal.SIGKILL):
            break
    else:
        return False
    began = time.monotonic()
    code = process.wait(RANK_SECONDS)
    waits.append(time.monotonic() - began)
    if code is None:
        raise Broken(f"process {rank} was killed, and the run still goes on after {RANK_SECONDS:.0f} s")
    if left := processes_of(run.root):
        raise Broken(f"the run ended, and processes are left: {sorted(left)}")
    if code == 0 and run.report.exists():
        return False  # it had ended
    failed = [event["message"] for event in events_of(run) if event["event"] == "failed"]
    named = any(f"process {rank} of {PROCESSES} was killed by SIGKILL" in message for message in failed)
    if code != -signal.SIGKILL or not named:
        raise Broken(f"process {rank} was killed, and the run ended with {code}: {failed}")
    return True


def kill_launcher(run: RunDirectory, process: TrainerProcess, waits: list[float], *, frozen: bool) -> TrainerProcess:
    """Kill the launcher, and start the run again at once. Returns the new start, which waits for the old processes.

    Args:
        waits: gets the seconds until the old processes ended
        frozen: the old processes stand still for a while
    """
    ranks = {pid for pid, rank in processes_of(run.root).items() if rank is not None}
    if frozen:
        send_signal(sorted(ranks), signal.SIGSTOP)
    send_signal([process.pid], signal.SIGKILL)
    process.wait(RUN_SECONDS)
    again = TrainerProcess(run, {})
    try:
        waits.append(await_stopped([run], run.root, ranks, FROZEN_SECONDS if frozen else 0.0))
    except BaseException:
        send_signal(sorted(ranks), signal.SIGKILL)
        again.kill()
        raise
    return again


def await_stopped(runs: list[RunDirectory], folder: Path, old: set[int], frozen_seconds: float = 0.0) -> float:
    """Wait until the processes of a start are gone, after what watches them was killed. Returns the seconds it took.

    Args:
        frozen_seconds: until then they stand still

    Raises:
        Broken: they stay too long or train on, or the next start trains meanwhile.
    """
    began, thawed = time.monotonic(), frozen_seconds == 0
    before = [(starters(run), last_step(run)) for run in runs]
    while left := old & processes_of(folder).keys():
        seconds = time.monotonic() - began
        if any(starters(run) - begun - old for run, (begun, _) in zip(runs, before, strict=True)):
            raise Broken(f"a start trains while processes of the one before are left: {sorted(left)}")
        if seconds > LAUNCHER_SECONDS:
            raise Broken(f"{len(left)} processes are left after {seconds:.0f} s: {sorted(left)}")
        if not thawed and seconds > frozen_seconds:
            thawed = send_signal(sorted(left), signal.SIGCONT) >= 0
        time.sleep(0.02)
    for run, (_, step) in zip(runs, before, strict=True):
        if last_step(run) > step + LATE_STEPS:
            raise Broken(f"{run.root}: trained on from step {step} to {last_step(run)} after its launcher was gone")
    return time.monotonic() - began - frozen_seconds * (len(old) > 0)


def killed_run(whole: Whole, root: Path, chance: random.Random, *, victim: str, sample: bool) -> Done:
    """Kill a run some times, and compare its end with a run that was not killed."""
    run, kills, waits = copy_inputs(whole.inputs, root), 0, [0.0]
    process = TrainerProcess(run, {})
    try:
        while kills < (1 if sample else KILLS):
            if not await_moment(run, process, None if sample else chance.uniform(0, whole.seconds)):
                break
            if victim == "launcher":
                process = kill_launcher(run, process, waits, frozen=sample or chance.random() < 0.25)
            elif not kill_rank(run, process, chance, waits):
                break
            else:
                process = TrainerProcess(run, {})
            kills += 1
        if (code := process.wait(RUN_SECONDS)) != 0:
            raise Broken(f"{run.root} ended with {code}: {run.log.read_text()[-2000:]}")
    finally:
        process.kill()
    again = check_as_whole(run, whole, run.adapter)
    if victim == "launcher" and again:
        raise Broken(f"{again} steps were made again, although all processes could write a checkpoint")
    shutil.rmtree(run.root)
    return Done(count=kills, note=note_of(kills, again, waits))


def note_of(kills: int, again: int, waits: list[float]) -> str:
    return f"{kills} kills, {again} steps made again, the others ended within {max(waits):.1f} s"


@contextmanager
def killed_runs(folder: Path, sample: bool, victim: str) -> Iterator[Trials]:
    with server(folder / "postgres") as url, scene(folder / "prepare", url, "prepare") as one:
        inputs = claimed_inputs(one, folder / "inputs", real_options(one))
    whole = train_whole(inputs, folder / "whole")

    def trial(number: int) -> Done:
        root = folder / f"trial{number}"
        return killed_run(whole, root, random.Random(number), victim=victim, sample=sample)

    yield Trials(number=1 if sample else RUNS, run=trial)


# --- row 28: the service --------------------------------------------------------------------------------------


def runs_of(one: Scene) -> list[RunDirectory]:
    found = sorted(one.home.runs.iterdir()) if one.home.runs.exists() else []
    return [RunDirectory(path) for path in found if path.name.isdigit()]


def claimed_inputs(
    one: Scene, root: Path, options: dict[str, object], recipe: Mapping[str, object] = RECIPE
) -> RunDirectory:
    """Have a service claim files, and return a copy of its run directory before its first start."""
    one.produce(FILES)
    service = one.start(**options, recipe=tuple(recipe.items()))
    deadline = time.monotonic() + RUN_SECONDS
    while not runs_of(one):
        if time.monotonic() > deadline:
            raise Broken(f"no run was claimed; {one.log_tail()}")
        time.sleep(0.02)
    inputs = copy_inputs(runs_of(one)[0], root)
    old = processes_of(one.home.runs)
    service.kill()
    await_stopped(runs_of(one), one.home.runs, set(old))
    return inputs


def killed_service(one: Scene, whole: Whole, chance: random.Random, options: dict[str, object], sample: bool) -> Done:
    """Kill a service while it trains a run, and compare the run's end with one whose service was not killed."""
    one.produce(FILES)
    kills, waits = 0, [0.0]
    while kills < (1 if sample else KILLS) and not one.pointer.is_symlink():
        service = one.start(**options)
        if sample:
            while not any(last_step(run) for run in runs_of(one)):
                time.sleep(0.02)
        else:
            time.sleep(chance.uniform(0, whole.seconds))
        old = set(processes_of(one.home.runs))
        service.kill()
        kills += 1
        one.check_pointer()
        if sample or chance.random() < 0.5:  # else the next service starts beside them
            waits.append(await_stopped(runs_of(one), one.home.runs, old))
    service = one.start(**options)
    one.settle(RUN_SECONDS)
    service.terminate(LAUNCHER_SECONDS)
    if left := processes_of(one.home.runs):
        raise Broken(f"{len(left)} processes are left: {sorted(left)}")
    (run,) = [run for run in runs_of(one) if run.report.exists()]
    if again := check_as_whole(run, whole, one.pointer.resolve()):
        raise Broken(f"{again} steps were made again, although all processes could write a checkpoint")
    return Done(count=kills, note=note_of(kills, again, waits))


@contextmanager
def killed_services(folder: Path, sample: bool) -> Iterator[Trials]:
    with server(folder / "postgres") as url:
        with scene(folder / "prepare", url, "prepare") as one:
            options = real_options(one)
            whole = train_whole(claimed_inputs(one, folder / "inputs", options), folder / "whole")
        options |= {"recipe": tuple(RECIPE.items())}

        def trial(number: int) -> Done:
            with scene(folder / f"trial{number}", url, "killed_services") as one:
                return killed_service(one, whole, random.Random(number), options, sample)

        yield Trials(number=1 if sample else RUNS, run=trial)


SAME = "none left in time, the run goes on; each step and row once, and the adapter of a run that was not killed"
ROWS = {
    26: Row(fault="`kill -9` of one of a run's two processes at random moments", unit="kills", passes=SAME,
            prepare=lambda folder, sample: killed_runs(folder, sample, "rank")),
    27: Row(fault="`kill -9` of the launcher of two processes at random moments, started again at once", unit="kills",
            passes=SAME, prepare=lambda folder, sample: killed_runs(folder, sample, "launcher")),
    28: Row(fault="`kill -9` of the service while two processes train, at random moments", unit="kills", passes=SAME,
            prepare=killed_services),
}  # fmt: skip
