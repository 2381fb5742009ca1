"""Sends the gate's verdict on a finished run to the run's trackers: `python -m trainer track DIRECTORY`. (no torch)

The service decides after the trainer has ended, and writes verdict.json. It becomes one more step of the run's curves.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer.errors import UnusableInput
from trainer.recipe import Recipe
from trainer.recipe_file import load_recipe
from trainer.run_dir import MANIFEST, RunDirectory, read_json, sha256_file, write_json
from trainer.track.tensorboard_tracker import TensorBoardBackend
from trainer.track.trackers import Trackers, Worker
from trainer.track.wandb_run import has_run, run_name
from trainer.track.wandb_tracker import WandbBackend, wandb_mode

SEND_SECONDS = 600.0
"""How long sending may take. An adapter that is uploaded can have gigabytes."""
OUTCOMES = {"pass": 1.0, "inconclusive": 0.5, "fail": 0.0}
JOULES_PER_KWH = 3.6e6
ORIGIN = ("version", "parent_version", "stream", "base", "seed", "trunk", "evaluation")
"""What an artifact's metadata takes from lineage.json. Its row hashes stay in the folder."""


def send_verdict(directory: RunDirectory, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Send the verdict to the trackers that followed the training. Returns the problems, and notes if there are none.

    Raises:
        UnusableInput: a file of the run is missing or cannot be read.
    """
    try:
        verdict, report = read_json(directory.verdict), read_json(directory.report)
        recipe = load_recipe(directory.recipe)
        numbers, texts = dict(gate_numbers(verdict, report)), dict(gate_texts(verdict))
        step = int(report["steps"]["done"]) + 1  # W&B takes nothing for a step that it has
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnusableInput(f"the verdict of {directory.root} cannot be sent: {error!r}") from error
    problems: list[str] = []
    trackers = _trackers(directory, recipe, verdict, problems, environment)
    trackers.log(step, numbers)
    trackers.texts(step, texts)
    if verdict.get("adapter") and recipe.tracking.wandb_adapter != "off":
        trackers.artifact(recipe.stream, **artifact_of(directory.root / verdict["adapter"], verdict, recipe))
    trackers.close(SEND_SECONDS)
    if not problems:
        write_json(directory.verdict_sent, {"decision": verdict["decision"]})
    return problems


def gate_numbers(verdict: Mapping[str, Any], report: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield what the trackers show as numbers. A rule is 1 if it passed, 0 if it failed, and 0.5 if it is open."""
    yield "gate/promoted", float(verdict["promote"])
    for rule in verdict["rules"]:
        yield f"gate/rules/{rule['rule']}", OUTCOMES[rule["outcome"]]
    for files, interval in verdict["intervals"].items():
        for bound in ("difference", "low", "high", "files"):
            yield f"gate/{files}/{bound}", float(interval[bound])
    for model in ("anchor", "current", "candidate"):
        if score := (report.get("evaluation") or {}).get(model):
            yield f"gate/loss/{model}", float(score["loss"])
    if (joules := report.get("energy_joules")) is not None:
        yield "energy/joules", float(joules)
        yield "energy/kwh", joules / JOULES_PER_KWH
    if cost := verdict.get("energy_cost"):
        yield "energy/cost", float(cost["amount"])


def gate_texts(verdict: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what the trackers show as text: the decision, why, and what each rule found."""
    yield "gate/decision", verdict["decision"]
    yield "gate/reasons", "; ".join(verdict["reasons"])
    for rule in verdict["rules"]:
        yield f"gate/found/{rule['rule']}", f"{rule['outcome']}: {rule['text']}"
    if cost := verdict.get("energy_cost"):
        yield "energy/currency", cost["currency"]


def artifact_of(folder: Path, verdict: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    """Return the published adapter as W&B takes it."""
    origin = read_json(folder / "lineage.json")
    parent = origin["parent_version"]
    return {
        "folder": str(folder.resolve()),
        "metadata": {
            **{name: origin.get(name) for name in ORIGIN},
            "recipe": recipe.name,
            "rows": len(origin.get("rows") or ()),
            "manifest_sha256": sha256_file(folder / MANIFEST),
            "parent_artifact": None if parent is None else f"{recipe.stream}:{alias(parent)}",
        },
        "aliases": [alias(verdict["version"]), "current"],
        "parent": None if parent is None else alias(parent),
        "upload": recipe.tracking.wandb_adapter == "upload",
    }


def alias(version: int) -> str:
    """Return a version's alias. W&B keeps v0, v1, … for its own count."""
    return f"adapter-v{version:06d}"


def _trackers(
    directory: RunDirectory,
    recipe: Recipe,
    verdict: Mapping[str, Any],
    problems: list[str],
    environment: Mapping[str, str],
) -> Trackers:
    """Open the trackers that followed the training. A run that was not sent to W&B does not begin there now."""

    def on_problem(tracker: str, message: str) -> None:
        problems.append(f"{tracker}: {message}")

    workers = []
    mode = wandb_mode(environment)
    if mode is not None and has_run(directory):
        name = run_name(recipe, int(verdict["run_id"]))
        backend = WandbBackend(
            recipe, directory, run_name=name, mode=mode, environment=environment, finish_seconds=SEND_SECONDS - 10
        )
        workers.append(Worker("wandb", backend, on_problem, secret=environment.get("WANDB_API_KEY", "")))
    board = directory.root / "tensorboard"
    if board.is_dir():
        workers.append(Worker("tensorboard", TensorBoardBackend(board), on_problem))
    return Trackers(workers)
