"""Prepares a training on rewards: checks what can be checked without a model, and runs the trainer's process."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from db import adapters as adapter_table
from service.cycle import trainer_commands
from service.cycle.trainer_commands import with_absolute_folder
from service.database import database
from service.errors import PreconditionError, UsageError
from service.publish.chosen import choose_adapter
from service.reward.overlap import check_overlap
from service.settings.home import Home
from service.settings.load import Settings
from trainer.recipe_file import dump_recipe
from trainer.run_dir import read_json

RESULT = "reward.json"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `codelupe reward` was asked for, except recipe and folder."""

    tasks: Path
    split: str | None
    method: str
    rounds: int
    samples_per_task: int
    evaluate: Path | None
    adapter: str
    smoke: bool

    def arguments(self) -> list[str]:
        """Return the trainer's arguments, except the adapter."""
        found = ["--tasks", str(self.tasks.absolute()), "--method", self.method, "--rounds", str(self.rounds)]
        found += ["--samples-per-task", str(self.samples_per_task)]
        found += ["--split", self.split] if self.split else []
        found += ["--evaluate", str(self.evaluate.absolute())] if self.evaluate else []
        return found + (["--smoke"] if self.smoke else [])


def check_tasks(settings: Settings, options: Options) -> None:
    """Check that the files are there, and that no task is in a benchmark that measures the model.

    Raises:
        UsageError
    """
    for name, path in (("--tasks", options.tasks), ("--evaluate", options.evaluate)):
        if path is not None and not path.is_file():
            raise UsageError(f"{name}: there is no file {path}. Name a JSONL file in HumanEval's or MBPP's form")
    recipe = settings.recipe
    suites = [Path(suite).expanduser() for suite in recipe.evaluation.suites]
    check_overlap(
        options.tasks,
        options.split,
        evaluated=[*([options.evaluate] if options.evaluate else []), *suites],
        benchmarks=[Path(path).expanduser() for path in recipe.hygiene.benchmarks],
        gram_words=recipe.hygiene.benchmark_gram_words,
    )


def train_on_rewards(settings: Settings, options: Options, folder: Path) -> dict[str, Any]:
    """Train, or go on with it. Returns reward.json.

    Raises:
        UsageError, PreconditionError: the adapter cannot be found.
        typer.Exit: the trainer ended with an error, which it printed. 75: it was stopped.
    """
    chosen = choose_adapter(options.adapter, Home(settings.home), lambda: _history(settings))
    with tempfile.TemporaryDirectory() as scratch:
        recipe = Path(scratch) / f"{settings.recipe.name}.yaml"
        recipe.write_text(dump_recipe(with_absolute_folder(settings.recipe)), encoding="utf-8")
        arguments = options.arguments() + ([] if chosen.folder is None else ["--adapter", str(chosen.folder)])
        code = trainer_commands.reward(recipe, folder, arguments, _environment(settings))
    if code != 0:
        raise typer.Exit(code if code > 0 else 1)
    try:
        found: dict[str, Any] = read_json(folder / RESULT)
    except (OSError, ValueError) as error:
        raise PreconditionError(f"{folder / RESULT} cannot be read ({error})") from error
    return found


def _history(settings: Settings) -> list[adapter_table.Adapter]:
    with database(settings) as pool:
        return adapter_table.history(pool, settings.recipe.stream)


def _environment(settings: Settings) -> dict[str, str]:
    """What the trainer's process may know beyond the usual."""
    known = {"HF_TOKEN": settings.trainer_secrets.get("HF_TOKEN"), "SANDBOX_SOCKET": settings.sandbox_socket}
    return {name: value for name, value in known.items() if value}
