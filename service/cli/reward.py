"""The command reward."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from service import logs
from service.cli.console import JsonOption, RecipeOption, out, print_json, print_table, settings_for
from service.cli.train import SetOption, folder_for
from service.errors import UsageError
from service.publish.chosen import WORDS
from service.reward.prepare import Options, check_tasks, train_on_rewards
from service.settings.overrides import overridden
from service.training.smoke import smoke_settings

METHODS = ("rejection", "grpo")
SPLITS = ("few_shot", "test", "validation", "train", "all")
SMOKE_ROUNDS, SMOKE_ANSWERS, SMOKE_TOKENS = 2, 4, 16


def reward(
    tasks: Annotated[Path, typer.Option(help="JSONL tasks in HumanEval's or MBPP's form. MBPP: its training part.")],
    recipe: RecipeOption = None,
    method: Annotated[
        str, typer.Option(help="rejection: train on answers that pass. grpo: one step on all answers of a round.")
    ] = "rejection",
    rounds: Annotated[int, typer.Option(min=1, max=100_000, help="Number of rounds. It may grow later.")] = 3,
    samples_per_task: Annotated[int, typer.Option(min=1, max=10_000, help="Answers to each task in a round.")] = 8,
    split: Annotated[str | None, typer.Option(help=f"MBPP's split: {', '.join(SPLITS)}. Default: train.")] = None,
    evaluate: Annotated[
        Path | None, typer.Option(help="A benchmark that measures the start and the result, with other tasks.")
    ] = None,
    adapter: Annotated[
        str, typer.Option(help=f"Where to start: {', '.join(WORDS)}, a version, or an adapter folder.")
    ] = "base",
    execute: Annotated[
        bool, typer.Option("--execute", help="Run what the model writes, in the sandbox. Needed.")
    ] = False,
    to: Annotated[
        Path | None, typer.Option(help="Folder of the training. Default: rewards/RECIPE below CODELUPE_HOME.")
    ] = None,
    changes: SetOption = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Try the path in a minute: a toy base, and the tasks' solutions as answers.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train on tests: the model answers tasks, the sandbox runs the answers, the verdicts teach it. Resumes."""
    if not execute:
        raise UsageError("`reward` runs code that a model wrote, in the sandbox. Add --execute to allow that")
    for name, value, known in (("--method", method, METHODS), ("--split", split or SPLITS[0], SPLITS)):
        if value not in known:
            raise UsageError(f"{name} {value!r} is not one of {', '.join(known)}")
    settings = settings_for(recipe)
    settings = replace(settings, recipe=overridden(settings.recipe, changes or []))
    options = Options(
        tasks=tasks, split=split, method=method, rounds=rounds, samples_per_task=samples_per_task, evaluate=evaluate,
        adapter=adapter, smoke=smoke,
    )  # fmt: skip
    check_tasks(settings, options)
    folder = folder_for(settings, to, kind="reward", smoke=smoke)
    logs.set_up(settings.log_format)
    if smoke:
        settings = smoke_settings(settings, folder.with_name(f"{folder.name}-toy"))
        smaller = replace(settings.recipe.reward, max_tokens=SMOKE_TOKENS)
        settings = replace(settings, recipe=replace(settings.recipe, reward=smaller))
        options = replace(
            options,
            rounds=min(rounds, SMOKE_ROUNDS),
            samples_per_task=min(max(samples_per_task, 2), SMOKE_ANSWERS),
        )
    found = train_on_rewards(settings, options, folder)
    print_json({"folder": folder, **found}) if as_json else _print(found)
    if smoke and not as_json:
        out.print("with --smoke, the first answer to each task is its own solution: the rates say nothing")


def _print(found: dict[str, Any]) -> None:
    rows = [
        [rates["after_round"], *(_rate(rates[part]) for part in ("training", "held_out")), _learned(found, place)]
        for place, rates in enumerate(found["rates"])
    ]
    counts = found["tasks"]
    columns = ["round", "training tasks", "held-out tasks", "trained on next"]
    title = (
        f"{found['method']}, {found['samples_per_task']} answers to each of {counts['training']} + "
        f"{counts['held_out']} tasks: pass rates after each round"
    )
    print_table(title, columns, rows)
    if (paired := found["evaluation"]) is not None:
        out.print(
            f"benchmark: pass@1 {paired['difference']:+.4f}, 95 % interval {paired['low']:+.4f} to "
            f"{paired['high']:+.4f} over {paired['tasks']} tasks"
        )
    out.print(f"adapter: {found['adapter']}", markup=False)
    out.print(f"answers that passed, as records for `codelupe drop`: {found['samples']}", markup=False)


def _rate(part: dict[str, Any]) -> str:
    return f"{part['value']:.3f} ({part['low']:.2f} to {part['high']:.2f})"


def _learned(found: dict[str, Any], place: int) -> str | None:
    if place >= len(found["rounds"]):
        return None
    facts = found["rounds"][place]
    if found["method"] == "rejection":
        return f"{facts['kept']} answers, {facts['tasks_kept']} tasks"
    signal = facts["groups"] - facts["groups_without_signal"]
    return f"{facts['trained_answers']} answers, {signal} tasks"
