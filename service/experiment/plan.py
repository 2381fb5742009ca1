"""What an experiment compares, and its folder.

FOLDER/plan.json           what it was started with
       tasks.jsonl         the rows of all arms
       control/            the training of an arm (service/training/folder.py), one folder for each
       evaluations/base/   answers and verdicts, one folder for the base and for each arm
       experiment.json .md the results
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from service.errors import PreconditionError, UsageError
from service.experiment.overlap import Overlap
from service.experiment.tasks import Task
from trainer.fact_names import has_facts
from trainer.recipe import Recipe
from trainer.recipe_experiment import Arm, Stage
from trainer.recipe_file import dump_recipe
from trainer.records import json_line
from trainer.run_dir import read_json, write_json, write_text

NAME = "plan.json"
LEAST_HELD_OUT = 2
NEVER = 10_000
"""Evaluations without a gain that end a training early."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """An experiment that is ready to start."""

    root: Path
    recipe: Recipe
    """Of the experiment. Each arm has its own (see `arm_recipe`)."""
    stage: Stage
    training: tuple[Task, ...]
    """The tasks of the stage, and those to hold out."""
    test: tuple[Task, ...]
    test_file: Path
    overlap: Overlap
    smoke: bool

    @property
    def held_out(self) -> int:
        """Number of tasks that measure the loss. A short file gives at most half of its tasks."""
        return held_out_tasks(self.recipe, self.stage)

    @property
    def rows(self) -> Path:
        """The file with the rows of all arms."""
        return self.root / "tasks.jsonl"

    def arm(self, name: str) -> Path:
        """The folder of an arm's training."""
        return self.root / name

    def evaluation(self, name: str) -> Path:
        """The folder with the answers of an arm or of `base`."""
        return self.root / "evaluations" / name


def held_out_tasks(recipe: Recipe, stage: Stage) -> int:
    """Return how many tasks a stage holds out besides those that it trains on."""
    return max(LEAST_HELD_OUT, min(recipe.data.min_held_out, stage.tasks))


def chosen_stage(recipe: Recipe, name: str) -> Stage:
    """Raises UsageError if the recipe has no such stage."""
    stages = recipe.experiment.stages
    if found := next((stage for stage in stages if stage.name == name), None):
        return found
    known = ", ".join(stage.name for stage in stages)
    raise UsageError(f"--stage {name}: the recipe {recipe.name} has the stages {known} (experiment.stages)")


def chosen_arms(recipe: Recipe, name: str | None) -> tuple[Arm, ...]:
    """Return the named arm, or all. Raises UsageError if the recipe has no such arm."""
    arms = recipe.experiment.arms
    found = tuple(arm for arm in arms if name in (None, arm.name))
    if not found:
        known = ", ".join(arm.name for arm in arms)
        raise UsageError(f"--arm {name}: the recipe {recipe.name} has the arms {known} (experiment.arms)")
    return found


def check_facts(arms: Sequence[Arm], tasks: Sequence[Task]) -> None:
    """Raises UsageError if an arm shows metadata, but a task has none to show."""
    bare = [task.task_id for task in tasks if not has_facts(task.metadata)]
    if bare and (shown := [arm.name for arm in arms if arm.metadata]):
        named = ", ".join(bare[:5]) + (", …" if len(bare) > 5 else "")
        raise UsageError(
            f"--train: {len(bare)} of {len(tasks)} tasks have no fact for the arm {', '.join(shown)}: {named}. Their "
            "solution is not Python, or defines no function. Give them `metadata` (functionName, algorithmType, "
            "timeComplexity or spaceComplexity), or remove them"
        )


def arm_recipe(plan: Plan, arm: Arm) -> Recipe:
    """Return the recipe of an arm. Two arms' recipes differ in names and metadata only.

    All arms take the same steps, whatever their losses: no early end, and the last weights are the result. Without
    packing, longer samples do not change which ones are in a step. The test examines them, so the gate does not.
    """
    recipe, stage = plan.recipe, plan.stage
    if recipe.phases:
        raise UsageError(f"the recipe {recipe.name} has phases, which an experiment cannot train. Remove them")
    hygiene = replace(recipe.hygiene, benchmarks=()) if plan.overlap.is_test_trained else recipe.hygiene
    without = 0.0 if not arm.metadata else recipe.data.metadata_off_last_fraction
    return replace(
        recipe,
        name=f"{recipe.name}-{arm.name}",
        stream=f"{recipe.stream}-{arm.name}",
        data=replace(
            recipe.data, metadata=arm.metadata, metadata_off_last_fraction=without, split="file",
            held_out_fraction=0.0, min_held_out=plan.held_out,
        ),
        training=replace(
            recipe.training, num_epochs=stage.num_epochs, packing=False, load_best=False,
            gradient_accumulation_steps=stage.gradient_accumulation_steps,
        ),
        evaluation=replace(recipe.evaluation, patience=NEVER, suites=()),
        gate=replace(recipe.gate, examination=False),
        hygiene=hygiene,
    )  # fmt: skip


def open_plan(plan: Plan, source: str) -> None:
    """Make the folder of an experiment with its rows, or check that it belongs to the same one.

    Raises:
        UsageError: the folder belongs to another experiment, or holds something else.
        PreconditionError: its plan cannot be read.
    """
    rows = "".join(json_line(task.record(source)) for task in plan.training)
    facts = {
        "format": 1,
        "recipe": plan.recipe.name,
        "recipe_sha256": _sha256(dump_recipe(plan.recipe)),
        "stage": plan.stage.name,
        "training_tasks": len(plan.training),
        "rows_sha256": _sha256(rows),
        "test_file_sha256": hashlib.sha256(plan.test_file.read_bytes()).hexdigest(),
        "smoke": plan.smoke,
    }
    path = plan.root / NAME
    before = _facts(path) if path.exists() else None
    if before is None and plan.root.exists() and any(plan.root.iterdir()):
        raise UsageError(f"--to: {plan.root} is not empty, and holds no experiment. Choose another folder")
    if before is not None and before != facts and any(plan.root.glob("*/runs/[0-9]*")):
        changed = ", ".join(sorted(name for name in {*before, *facts} if before.get(name) != facts.get(name)))
        raise UsageError(
            f"{plan.root} holds another experiment: {changed} differ. Its arms must have the same base, rows and "
            "values. To start anew, choose another folder with --to. To resume, give the same options as before"
        )
    plan.root.mkdir(parents=True, exist_ok=True)
    write_json(path, facts)
    write_text(plan.rows, rows)


def _facts(path: Path) -> dict[str, Any]:
    try:
        return dict(read_json(path))
    except (OSError, ValueError, TypeError) as error:
        raise PreconditionError(f"{path} cannot be read ({error}). Choose another folder with --to") from error


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
