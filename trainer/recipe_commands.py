"""The commands about a recipe: prepare, plan, doctor, samples. None of them trains."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.check import check_compiler, check_launcher
from trainer.errors import TrainerError
from trainer.imports import collector_paused
from trainer.recipe import Recipe
from trainer.recipe_file import load_recipe
from trainer.samples.build import check_builders, needs
from trainer.stop import write_stderr


def add_commands(commands: Any) -> None:
    """Add the parsers of all commands."""
    prepare = commands.add_parser("prepare", help="resolve a recipe's base model and check that the recipe fits it")
    prepare.add_argument("recipe", type=Path)
    plan = commands.add_parser("plan", help="predict memory and speed of a recipe, and choose a plan that fits a card")
    plan.add_argument("recipe", type=Path)
    plan.add_argument("--card")
    plan.add_argument("--vram-gib", type=float)
    plan.add_argument("--gpus", type=int)
    plan.add_argument("--strategy", choices=("auto", "ddp", "fsdp2", "zero2", "zero3"))
    plan.add_argument("--sequence", type=int)
    plan.add_argument("--network-gbits", type=float)
    plan.add_argument("--samples", type=int)
    plan.add_argument("--tokens-per-sample", type=float)
    plan.add_argument("--json", action="store_true")
    doctor = commands.add_parser("doctor", help="check whether this machine is ready for a recipe (JSON lines)")
    doctor.add_argument("recipe", type=Path)
    doctor.add_argument("--folder", type=Path, help="also check whether a training that writes there can begin")
    samples = commands.add_parser("samples", help="show the samples of some rows, and which tokens have loss")
    samples.add_argument("recipe", type=Path)
    samples.add_argument("rows", type=Path)
    samples.add_argument("--builder")
    samples.add_argument("--limit", type=int, default=20)
    samples.add_argument("--seed", type=int)
    samples.add_argument("--json", action="store_true")
    samples.add_argument(
        "--plain", action="store_true", help="mark text with symbols instead of colours (default without a terminal)"
    )


def run_recipe_command(chosen: argparse.Namespace) -> int:
    """Run a command and return its exit code."""
    return COMMANDS[chosen.command](chosen)


def prepare_command(path: Path) -> int:
    """Print the resolved base as JSON on the last line of stdout."""
    try:
        recipe = load_recipe(path)
        check_builders(recipe.data)
        check_compiler(recipe)
        check_launcher(recipe)
        with collector_paused():
            from trainer.model.base import prepare_base
            from trainer.model.mixture import check_router
            from trainer.model.sequence import check_sequence

        found = prepare_base(recipe)
        check_router(recipe)
        check_sequence(recipe)
        check_tokens(recipe)
        check_suites(recipe)
    except TrainerError as error:
        write_stderr(str(error))
        return error.exit_code
    sys.stdout.write(
        json.dumps({"model": found.model, "revision": found.revision, "parameters": found.parameters}) + "\n"
    )
    return 0


def check_tokens(recipe: Recipe) -> None:
    """Check that the base's tokenizer has the control tokens of the recipe's builders, before any row is claimed.

    Raises:
        UnusableInput: a token is missing, or the tokenizer cannot be loaded.
    """
    needed = {builder: [role for role in roles if role != "chat"] for builder, roles in needs(recipe.data).items()}
    if any(needed.values()):
        with collector_paused():
            from trainer.data.encoder import SampleEncoder
            from trainer.model.load import load_tokenizer

        SampleEncoder(load_tokenizer(recipe.base)).check(needed)


def check_suites(recipe: Recipe) -> None:
    """Check that the recipe's suites can be read, and that their answers can be executed here.

    Raises:
        UnusableInput: a suite cannot be read, or the sandbox is not available.
    """
    if recipe.evaluation.suites:
        from trainer.evaluate.execute import choose_runner
        from trainer.evaluate.suites import read_suite

        for suite in recipe.evaluation.suites:
            read_suite(Path(suite).expanduser())
        choose_runner()


def plan_command(chosen: argparse.Namespace) -> int:
    """Print the plan for a recipe. Returns 3 if no plan fits."""
    try:
        recipe = load_recipe(chosen.recipe)
        from trainer.plan import command

        return command.plan_command(
            recipe,
            card=chosen.card,
            vram_gib=chosen.vram_gib,
            gpus=chosen.gpus,
            strategy=chosen.strategy,
            sequence=chosen.sequence,
            network_gbits=chosen.network_gbits,
            samples=chosen.samples,
            tokens_per_sample=chosen.tokens_per_sample,
            as_json=chosen.json,
        )
    except TrainerError as error:
        write_stderr(str(error))
        return error.exit_code


def doctor_command(path: Path, folder: Path | None) -> int:
    """Print the checks of this machine for a recipe. Returns 1 if a check failed."""
    try:
        recipe = load_recipe(path)
        with collector_paused():
            from trainer import doctor

        return doctor.doctor_command(recipe, folder)
    except TrainerError as error:
        write_stderr(str(error))
        return error.exit_code


def samples_command(chosen: argparse.Namespace) -> int:
    """Print the training samples of some rows."""
    try:
        recipe = load_recipe(chosen.recipe)
        with collector_paused():
            from trainer.data import show

        return show.samples_command(
            recipe,
            chosen.rows,
            builder=chosen.builder,
            limit=chosen.limit,
            seed=chosen.seed,
            as_json=chosen.json,
            colour=sys.stdout.isatty() and not chosen.plain,
        )
    except BrokenPipeError:  # the reader closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except TrainerError as error:
        write_stderr(str(error))
        return error.exit_code


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "prepare": lambda chosen: prepare_command(chosen.recipe),
    "plan": plan_command,
    "doctor": lambda chosen: doctor_command(chosen.recipe, chosen.folder),
    "samples": samples_command,
}
