"""Trains the arms of an experiment, and checks that they differ in the metadata only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from service.errors import PreconditionError, ServiceError
from service.experiment.plan import Plan, arm_recipe
from service.gate.interval import Interval, loss_interval
from service.logs import PrintProgress
from service.settings.home import Home
from service.settings.load import Settings
from service.training.folder import open_folder
from service.training.sources import parts_of
from service.training.train import one_off, train
from trainer.errors import RecipeError
from trainer.recipe import Recipe
from trainer.recipe_experiment import Arm
from trainer.recipe_file import load_recipe, recipe_dict
from trainer.records import read_evaluation, read_outcomes
from trainer.run_dir import MANIFEST, RunDirectory, RunDirectoryError, read_json

MAY_DIFFER = frozenset({"name", "stream", "data.metadata", "data.metadata_off_last_fraction"})


@dataclass(frozen=True, kw_only=True)
class Trained:
    """An arm after its training."""

    arm: Arm
    adapter: Path
    run: RunDirectory
    decision: str
    """The gate's verdict. It does not matter for the experiment."""
    before: dict[str, Any]
    """Held-out scores of the base."""
    after: dict[str, Any]
    """Held-out scores of the arm."""
    gain: Interval | None
    """The arm's held-out loss minus the base's. None with fewer than two held-out tasks."""
    steps: int
    trained_tasks: int
    held_out_tasks: int
    rejected: dict[str, int]
    """Tasks that were not trained on, by reason."""

    @property
    def recipe(self) -> Recipe:
        """With its base pinned."""
        return load_recipe(self.run.recipe)


def train_arm(settings: Settings, plan: Plan, arm: Arm, *, show: PrintProgress) -> Trained:
    """Train an arm, or go on with it. A training that has ended is read again.

    Raises:
        UsageError, PreconditionError: the recipe or the folder cannot be used.
        ServiceError: the training gave no result.
        Interrupted: a signal asked it to stop.
    """
    recipe = arm_recipe(plan, arm)
    mine = replace(settings, recipe=recipe)
    parts = parts_of(recipe, [str(plan.rows)])
    folder = open_folder(plan.arm(arm.name), recipe, parts, smoke=plan.smoke)
    train(one_off(mine, folder), folder, parts, show=show)
    found = read_arm(plan, arm)
    if found is None:
        raise ServiceError(f"the arm {arm.name} has no adapter. See {folder.home.log_file}")
    return found


def read_arm(plan: Plan, arm: Arm) -> Trained | None:
    """Return an arm whose training has ended, or None.

    Raises:
        PreconditionError: its files cannot be read.
    """
    run = _last_run(plan, arm)
    if run is None or not run.report.exists():
        return None
    published = Home(plan.arm(arm.name)).adapter(int(run.root.name))
    adapter = published if published.is_dir() else run.adapter
    if not adapter.is_dir():
        return None
    try:
        report = read_json(run.report)
        gain = loss_interval(read_evaluation(run.evaluation), against="anchor")
        outcomes = list(read_outcomes(run.rows_outcome))
    except (OSError, ValueError, RunDirectoryError) as error:
        raise PreconditionError(f"{run.root} cannot be read ({error}). Choose another folder with --to") from error
    evaluation = report["evaluation"] or {}
    reasons = [one.reason or "unknown" for one in outcomes if one.outcome == "rejected"]
    return Trained(
        arm=arm, adapter=adapter, run=run, decision=str((report.get("verdict") or {}).get("decision")),
        before=evaluation.get("anchor") or {}, after=evaluation.get("candidate") or {}, gain=gain,
        steps=report["steps"]["done"],
        trained_tasks=sum(one.outcome == "trained" for one in outcomes),
        held_out_tasks=sum(one.outcome == "held_out" for one in outcomes),
        rejected={reason: reasons.count(reason) for reason in sorted(set(reasons))},
    )  # fmt: skip


def check_alike(plan: Plan, arms: Sequence[Arm]) -> None:
    """Check the arms that have claimed their rows: same base, same rows in the same order, same seed, same values.

    Raises:
        PreconditionError: two arms differ in more than their metadata.
    """
    runs = {arm.name: run for arm in arms if (run := _last_run(plan, arm)) is not None}
    claimed = list(runs)
    for name in claimed[1:]:
        try:
            found = _differences(runs[claimed[0]], runs[name])
        except (OSError, ValueError, KeyError, RecipeError) as error:
            raise PreconditionError(f"{runs[name].root} cannot be read ({error}). Choose another folder") from error
        if found:
            raise PreconditionError(
                f"the arms {claimed[0]} and {name} differ in more than their metadata: {'; '.join(found)}. Their "
                f"difference would say nothing. Remove {plan.arm(name)}, and start again"
            )


def check_trained_alike(trained: Sequence[Trained]) -> None:
    """Check what became of the rows: the same steps, and the same tasks rejected.

    Raises:
        PreconditionError: an arm learned from other tasks, because a sample with its metadata is too long, for example.
    """
    for one in trained[1:]:
        first = trained[0]
        mine, theirs = ((t.steps, t.trained_tasks, t.held_out_tasks, t.rejected) for t in (one, first))
        if mine != theirs:
            raise PreconditionError(
                f"the arm {one.arm.name} took {one.steps} steps on {one.trained_tasks} tasks and rejected "
                f"{one.rejected or 'none'}; {first.arm.name} took {first.steps} on {first.trained_tasks} and rejected "
                f"{first.rejected or 'none'}. If metadata make a sample too long, raise data.max_length, and start "
                "again in another folder"
            )


def _last_run(plan: Plan, arm: Arm) -> RunDirectory | None:
    """Return the newest run of an arm. Earlier ones failed."""
    found = sorted(path.parent for path in Home(plan.arm(arm.name)).runs.glob(f"[0-9]*/{MANIFEST}"))
    return RunDirectory(found[-1]) if found else None


def _differences(first: RunDirectory, second: RunDirectory) -> list[str]:
    """Return what two run directories differ in, besides the metadata."""
    mine, theirs = read_json(first.manifest), read_json(second.manifest)
    found = [] if mine.get("seed") == theirs.get("seed") else [f"seed {mine.get('seed')} and {theirs.get('seed')}"]
    for path in (first.rows, first.held_out):
        if mine["files"].get(path.name) != theirs["files"].get(path.name):
            found.append(f"the rows in {path.name}")
    values, others = _flat(load_recipe(first.recipe)), _flat(load_recipe(second.recipe))
    found += [
        f"{key} {values[key]!r} and {others[key]!r}"
        for key in values
        if key not in MAY_DIFFER and values[key] != others[key]
    ]
    return found


def _flat(recipe: Recipe) -> dict[str, Any]:
    """Return the values of a recipe by dotted key."""
    found: dict[str, Any] = {}
    for section, values in recipe_dict(recipe).items():
        parts = values if isinstance(values, dict) else {"": values}
        found |= {f"{section}.{name}".rstrip("."): value for name, value in parts.items()}
    return found
