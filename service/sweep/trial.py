"""One trial of a sweep: a run directory with the sweep's rows and a recipe of its own.

trials/3f2a9c41/trial.json   the values, and what became of it
                recipe.yaml rows.jsonl held_out.jsonl MANIFEST.json …   a run directory like any other
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from service.cycle.launch import TrainerProcess, watch_to_end
from service.cycle.telling import Telling
from service.logs import event as log
from service.sweep.space import Params
from trainer.errors import Stopped
from trainer.recipe import Recipe
from trainer.recipe_file import dump_recipe
from trainer.records import EventTail
from trainer.run_dir import MANIFEST, RunDirectory, new_folder, read_json, write_json, write_manifest, write_text

NAME = "trial.json"
State = Literal["waiting", "finished", "pruned", "failed"]
STARTS = 2
"""A trainer that somebody else stopped or killed is started again, from its checkpoint. The values are not at fault."""
FAILURES = {2: "the recipe cannot be used", 3: "out of memory", 4: "it diverged"}


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A trial and what became of it."""

    directory: RunDirectory
    params: Params
    state: State
    loss: float | None
    """Held-out loss in nats per token. Of a pruned trial: the last one that was measured."""
    measured: tuple[tuple[int, float], ...] = ()
    """Held-out losses that decide when training stops, by step."""
    reason: str | None = None
    """Why it failed or was pruned."""

    @property
    def name(self) -> str:
        return self.directory.root.name


def trial_name(params: Params) -> str:
    """Return the name of a trial's folder, which depends on its values only."""
    return hashlib.sha256(json.dumps(params, sort_keys=True).encode()).hexdigest()[:8]


def make_trial(inputs: RunDirectory, trials: Path, params: Params, recipe: Recipe) -> Trial:
    """Make the folder of a trial, or open it if an earlier start made it.

    Args:
        inputs: the run directory whose rows all trials have
        recipe: the trial's recipe, with its base pinned
    """
    root = trials / trial_name(params)
    if not root.exists():
        with new_folder(root) as folder:
            for path in (inputs.rows, inputs.held_out):
                _same_file(path, folder / path.name)
            write_text(folder / inputs.recipe.name, dump_recipe(recipe))
            known = read_json(inputs.manifest)
            facts = {name: value for name, value in known.items() if name != "files"} | {"seed": recipe.training.seed}
            write_manifest(folder, **facts)
            write_json(folder / NAME, {"params": params, "state": "waiting"})
    return read_trial(root)


def read_trial(root: Path) -> Trial:
    """Read a trial's folder."""
    record = read_json(root / NAME)
    return Trial(
        directory=RunDirectory(root),
        params=record["params"],
        state=record["state"],
        loss=record.get("loss"),
        measured=tuple((step, loss) for step, loss in record.get("measured", [])),
        reason=record.get("reason"),
    )


def trials_in(folder: Path) -> list[Trial]:
    """Return all trials, in the order in which they were made."""
    found = [path.parent for path in folder.glob(f"*/{NAME}")]
    return [read_trial(root) for root in sorted(found, key=lambda root: (root / MANIFEST).stat().st_mtime_ns)]


def run_trial(
    trial: Trial,
    secrets: Mapping[str, str],
    stop: threading.Event,
    is_hopeless: Callable[[int, float], bool] = lambda step, loss: False,
) -> Trial:
    """Train a trial to its end, or until `stop` is set. A trial that has ended is returned as it is.

    Args:
        is_hopeless: whether to end the trial, by the step and the held-out loss that was measured there
    """
    if trial.state != "waiting":
        return trial
    tail, prune = EventTail(trial.directory.events), threading.Event()
    telling = Telling(f"trial {trial.name}")
    measured: list[tuple[int, float]] = []

    def each_moment() -> None:
        events = tail.new()
        for event in events:
            telling.tell(event)
        for step, loss in _losses(events):
            measured.append((step, loss))
            if is_hopeless(step, loss):
                prune.set()
        if stop.is_set():
            prune.set()

    for _ in range(STARTS):
        process = TrainerProcess(trial.directory, secrets)
        log("Trial", trial=trial.name, pid=process.pid, **trial.params)
        code = watch_to_end(process, prune.is_set, each_moment)
        each_moment()
        if code is None or not (code < 0 or code == Stopped.exit_code):
            break
    telling.end()
    if stop.is_set() and not trial.directory.report.exists():
        return trial
    ended = _ending(trial, code, measured)
    write_json(trial.directory.root / NAME, ended)
    if ended["state"] != "finished":
        drop_weights(trial)
    return read_trial(trial.directory.root)


def drop_weights(trial: Trial) -> None:
    """Remove checkpoints and adapter."""
    shutil.rmtree(trial.directory.checkpoints, ignore_errors=True)
    shutil.rmtree(trial.directory.adapter, ignore_errors=True)


def _ending(trial: Trial, code: int | None, measured: list[tuple[int, float]]) -> dict[str, Any]:
    """Return what became of a trial whose trainer ended with `code`. None: it was stopped on purpose."""
    record: dict[str, Any] = {"params": trial.params, "measured": measured}
    if trial.directory.report.exists():
        report = read_json(trial.directory.report)
        evaluation = report["evaluation"]
        if report["steps"]["total"] == 0:
            reason = "no row gives a sample to train on. `codelupe samples` shows what the files become"
            return {**record, "state": "failed", "reason": reason}
        if evaluation:
            return {**record, "state": "finished", "loss": evaluation["candidate"]["loss"]}
        return {**record, "state": "failed", "reason": "no held-out row gives a sample"}
    if code is None:
        return {**record, "state": "pruned", "loss": measured[-1][1], "reason": f"at step {measured[-1][0]}"}
    why = FAILURES.get(code, f"the trainer ended with code {code}")
    return {**record, "state": "failed", "reason": f"{why}; see {trial.directory.log}"}


def _losses(events: list[dict[str, Any]]) -> Iterator[tuple[int, float]]:
    """Yield step and loss of the candidate's measurements during the fit."""
    for event in events:
        is_candidate = (event.get("event"), event.get("which")) == ("evaluation", "candidate")
        if is_candidate and "part" not in event and event["step"] > 0 and isinstance(event["loss"], float):
            yield event["step"], event["loss"]


def _same_file(source: Path, target: Path) -> None:
    """Link a file that nobody changes. Copy it where links are not possible."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
