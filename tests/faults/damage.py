"""Row 12: files of a checkpoint or an adapter are truncated, zeroed, changed by a bit, or missing."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from kills import GRACE_SECONDS, real_options, trainers
from oracle import Broken
from rows import Done, Row, Trials
from safetensors.torch import save_file
from scene import Scene, scene, server

from db.adapters import Adapter
from service.publish.folders import copy_candidate, verify_adapter
from service.settings.home import Home
from trainer.check import check_run
from trainer.errors import UnusableInput
from trainer.evaluate.score import Score
from trainer.fit.checkpoint import Checkpoint, checkpoint_path, newest_checkpoint, save_checkpoint
from trainer.fit.progress import Progress
from trainer.recipe import Evaluation, pinned
from trainer.recipe_file import dump_recipe, load_recipe
from trainer.records import EventTail
from trainer.run_dir import RunDirectory, RunDirectoryError, sha256_file, write_manifest, write_text

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "embedded.yaml"
CHECKPOINTS, ADAPTERS = 50, 60
"""How often a trial without a service damages a file."""
FILE_TRIALS, STUB_TRIALS, REAL_TRIALS = 8, 20, 20


def damage(folder: Path, chance: random.Random) -> str:
    """Damage one file below a folder. Return which file, and how."""
    path = chance.choice(sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()))
    data, how = path.read_bytes(), chance.choice(("truncated", "bit", "missing", "zeros"))
    at = chance.randrange(len(data))
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(data[:at])
    elif how == "bit":
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :])
    else:
        path.write_bytes(data[:at] + bytes(len(data) - at))
        if path.read_bytes() == data:
            path.unlink()
    return f"{path.parent.name}/{path.name} {how}"


# --- checkpoints ----------------------------------------------------------------------------------------------


def make_checkpoint(step: int, losses: dict[int, float], chance: random.Random) -> Checkpoint:
    progress = Progress()
    for at, loss in losses.items():
        progress.step = at
        progress.record(Score(loss=loss, token_accuracy=chance.random(), tokens=10), Evaluation(patience=99))
    progress.step = step
    generator = torch.Generator().manual_seed(chance.randrange(2**31))
    state = {"step": step, "state1": torch.randint(0, 255, (64,), dtype=torch.uint8, generator=generator)}
    return Checkpoint(
        progress=progress,
        adapter={"lora_A": torch.randn(8, 4, generator=generator), "lora_B": torch.randn(4, 8, generator=generator)},
        optimizer={"state": {0: state}, "param_groups": [{"lr": chance.random(), "params": [0]}]},
        random={"cpu.0": generator.get_state()},
    )


def same(left: Checkpoint, right: Checkpoint) -> bool:
    """Return whether two checkpoints are bitwise equal."""
    tensors = all(torch.equal(left.adapter[name], right.adapter[name]) for name in right.adapter)
    return (
        tensors
        and left.adapter.keys() == right.adapter.keys()
        and left.progress == right.progress
        and torch.equal(left.optimizer["state"][0]["state1"], right.optimizer["state"][0]["state1"])
        and left.optimizer["param_groups"] == right.optimizer["param_groups"]
        and torch.equal(left.random["cpu.0"], right.random["cpu.0"])
    )


def damaged_checkpoints(folder: Path, seed: int, times: int) -> Done:
    """Damage the last checkpoint, the best one, or both."""
    fallen_back = 0
    for number in range(times):
        chance = random.Random(f"{seed} {number}")
        root = folder / f"{seed}-{number}"
        losses = {0: 3.0, 4: 2.0} | ({8: 2.5, 12: 2.2} if chance.random() < 0.8 else {8: 1.5, 12: 1.0})
        saved = {}
        for step in (4, 8, 12):
            saved[step] = make_checkpoint(step, {k: v for k, v in losses.items() if k <= step}, chance)
            save_checkpoint(root, saved[step])
        kept = [step for step in saved if checkpoint_path(root, step).exists()]
        harmed = chance.sample(kept, chance.choice((1, 1, 1, 2)) if len(kept) > 1 else 1)
        harm = [damage(checkpoint_path(root, step), chance) for step in harmed]
        whole = [step for step in kept if step not in harmed]
        usable = [step for step in whole if saved[step].progress.best_step in whole]
        passed_over: list[str] = []
        found = newest_checkpoint(root, lambda path, _: passed_over.append(path.name))  # noqa: B023
        if (found is None) != (not usable) or (found is not None and not same(found, saved[max(usable)])):
            raise Broken(f"{harm}: resumed from {found and found.progress.step}; intact: {usable}")
        fallen_back += found is not None
        shutil.rmtree(root)
    return Done(count=times, note=f"{fallen_back} fell back on an older checkpoint, the others start again")


# --- adapters -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A finished run and its parent."""

    home: Home
    run: RunDirectory
    parent: Adapter


def make_candidate(root: Path, chance: random.Random) -> Candidate:
    home = Home(root)
    home.prepare()
    recipe = pinned(load_recipe(RECIPE), model="tiny-qwen2", revision="r" * 40)
    for version in (1, 2):
        run = home.run(version)
        run.root.mkdir()
        write_text(run.recipe, dump_recipe(recipe))
        for path in (run.rows, run.held_out):
            write_text(path, "")
        parent = home.adapter(1)
        if version == 2:
            run.parent.symlink_to(os.path.relpath(parent, run.root))
        write_manifest(
            run.root, run_id=version, stream=recipe.stream, seed=1, parent_version=version - 1 or None,
            parent_manifest_sha256=sha256_file(parent / "MANIFEST.json") if version == 2 else None,
            base={"model": recipe.base.model, "revision": recipe.base.revision},
        )  # fmt: skip
        run.adapter.mkdir()
        save_file({"a": torch.full((64,), chance.random())}, run.adapter / "adapter_model.safetensors")
        write_text(run.adapter / "adapter_config.json", '{"r": 16}\n')
        write_manifest(run.adapter)
        if version == 1:
            published = copy_candidate(home, run, 1, {"evaluation": {}})
    manifest = published.manifest_sha256
    adapter = Adapter(version=1, stream=recipe.stream, parent_version=None, folder="v000001", manifest_sha256=manifest,
                      evaluation={}, published_at=None, is_current=True)  # type: ignore[arg-type]  # fmt: skip
    return Candidate(home=home, run=home.run(2), parent=adapter)


def damaged_adapters(folder: Path, times: int) -> Done:
    """Damage the candidate or the published parent. It must not be published or trained on."""
    for number in range(times):
        chance = random.Random(f"adapter {number}")
        made = make_candidate(folder / f"adapter{number}", chance)
        check_run(made.run)  # still intact
        verify_adapter(made.home, made.parent)
        if number % 2:
            harm = damage(made.run.adapter, chance)
            with must_refuse(harm, RunDirectoryError):
                copy_candidate(made.home, made.run, 2, {"evaluation": {}})
            if made.home.adapter(2).exists():
                raise Broken(f"{harm}: a folder with the version's name was left behind")
        else:
            harm = damage(made.home.adapter(1), chance)
            with must_refuse(harm, RunDirectoryError):
                verify_adapter(made.home, made.parent)
            with must_refuse(harm, UnusableInput):
                check_run(made.run)
    return Done(count=times, note="candidates and parents")


@contextmanager
def must_refuse(harm: str, error: type[Exception]) -> Iterator[None]:
    try:
        yield
    except error:
        return
    raise Broken(f"{harm}: the damage was not noticed")


# --- with a service -------------------------------------------------------------------------------------------


def damaged_current(one: Scene, number: int) -> Done:
    """Damage the published adapter while no service runs. No run may start from it until it is restored."""
    chance = random.Random(number)
    one.produce(24)
    one.start()
    one.settle()
    assert one.service is not None
    one.service.terminate(GRACE_SECONDS)
    current = one.pointer.resolve()
    shutil.copytree(current, one.folder / "backup", symlinks=True)
    harm = damage(current, chance)
    before = {path.name for path in one.home.runs.iterdir()}
    one.start()
    one.produce(24)
    deadline = time.monotonic() + 60
    while "cannot be trained on" not in one.log_tail():
        if time.monotonic() > deadline:
            raise Broken(f"{harm}: the service did not notice; {one.log_tail()}")
        time.sleep(0.05)
    if new := {path.name for path in one.home.runs.iterdir()} - before:
        raise Broken(f"{harm}: runs started from it: {new}")
    shutil.rmtree(current)
    (one.folder / "backup").rename(current)
    one.settle()
    return Done(note=f"stub, published adapter: {harm}")


def damaged_resume(one: Scene, number: int, options: dict[str, object]) -> Done:
    """Kill a real run after a checkpoint, and damage the checkpoint. The run continues from intact files."""
    chance = random.Random(number)
    one.produce(40)
    service, run = one.start(**options), one.home.run(1)
    wanted, deadline = chance.choice((1, 2)), time.monotonic() + 300
    while events(run, "checkpoint") < wanted and not run.report.exists():
        if time.monotonic() > deadline:
            raise Broken(f"no checkpoint; {one.log_tail()}")
        time.sleep(0.05)
    service.kill()
    for pid in trainers(one):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    there = sorted(run.checkpoints.glob("step-*")) if run.checkpoints.exists() else []
    harm = damage(there[-1], chance) if there else "there was no checkpoint left"
    one.start(**options)
    one.settle(600)
    if there and not run.report.exists():
        raise Broken(f"{harm}: the run was not finished")
    if there and not events(run, "checkpoint_damaged") and events(run, "started") > 1:
        raise Broken(f"{harm}: the trainer did not notice")
    return Done(count=min(1, len(there)), note=f"real, {len(there)} checkpoints: {harm}")


def events(run: RunDirectory, name: str) -> int:
    return sum(event["event"] == name for event in EventTail(run.events).new())


@contextmanager
def damages(folder: Path, sample: bool) -> Iterator[Trials]:
    with server(folder / "postgres") as url:
        options: dict[str, object] = {}

        def trial(number: int) -> Done:
            if sample:
                number = (0, FILE_TRIALS, FILE_TRIALS + 1)[number]
            if number < FILE_TRIALS:
                return damaged_checkpoints(folder, number, 10 if sample else CHECKPOINTS)
            if number == FILE_TRIALS:
                return damaged_adapters(folder, 10 if sample else ADAPTERS)
            with scene(folder / f"trial{number}", url, f"damage_{number}") as one:
                if number <= FILE_TRIALS + STUB_TRIALS:
                    return damaged_current(one, number)
                options.update(options or real_options(one))
                return damaged_resume(one, number, options)

        yield Trials(number=3 if sample else FILE_TRIALS + 1 + STUB_TRIALS + REAL_TRIALS, run=trial)


ROWS = {
    12: Row(fault="a file of a checkpoint or an adapter truncated, zeroed, changed by a bit, or missing", unit="times",
            passes="nothing damaged is loaded or published; intact files are used instead", prepare=damages),
}  # fmt: skip
