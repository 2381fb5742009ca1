"""wandb-sync: what was written offline, or did not arrive, sent to W&B."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from service.cli.console import JsonOption, RecipeOption, print_json, print_table, settings_for
from service.cycle.unsent_runs import Sending, WandbFolder, is_in_use, runs_below, send, wandb_folders
from service.errors import PreconditionError, UsageError
from service.settings.home import Home
from trainer.run_dir import RunDirectory

SECONDS = 600.0


def wandb_sync(
    runs: Annotated[
        list[str] | None,
        typer.Argument(help="Runs by number, or folders with runs. Default: all runs of the stream.", metavar="[RUN]…"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be sent.")] = False,
    seconds: Annotated[float, typer.Option(min=1, max=86_400, help="Give up a folder after this time.")] = SECONDS,
    recipe: RecipeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send to W&B what was written with WANDB_MODE=offline, or did not arrive. Exit 1 if one folder failed."""
    settings = settings_for(recipe)
    found = list(wandb_folders(_chosen(Home(settings.home), settings.recipe.stream, runs or [])))
    waiting = [one for one in found if not one.is_sent]
    if waiting and not dry_run and "WANDB_API_KEY" not in settings.trainer_secrets:
        raise PreconditionError(
            f"{len(waiting)} folders wait, but WANDB_API_KEY is not set. Set it, or list them with --dry-run"
        )
    done: list[Sending] = []
    for one in found:
        done.append(_send(one, done, settings.trainer_secrets, dry_run=dry_run, seconds=seconds))
    if as_json:
        print_json([asdict(one) for one in done])
    else:
        print_table("W&B's folders", ["run", "folder", "outcome", "reason"],
                    [[one.run, one.folder, one.outcome, one.reason] for one in done])  # fmt: skip
    if any(one.outcome == "failed" for one in done):
        raise typer.Exit(1)


def _chosen(home: Home, stream: str, named: list[str]) -> list[RunDirectory]:
    """Return the run directories that are meant."""
    if not named:
        return runs_below(home.runs, stream) if home.runs.is_dir() else []
    chosen: list[RunDirectory] = []
    for name in named:
        if name.isdecimal() and len(name) < 19 and home.run(int(name)).root.is_dir():
            chosen.append(home.run(int(name)))
            continue
        folder = Path(name).absolute()
        if name.isdecimal() or not folder.is_dir():
            raise UsageError(f"{name!r} is neither the number of a run in {home.runs} nor a folder")
        inside = [folder / "runs", folder / "trials", folder]
        chosen += (
            [RunDirectory(folder)]
            if (folder / "wandb").is_dir()
            else [run for root in inside if root.is_dir() for run in runs_below(root)]
        )
    return chosen


def _send(
    one: WandbFolder, before: list[Sending], secrets: Mapping[str, str], *, dry_run: bool, seconds: float
) -> Sending:
    """Send one folder. After a failure, the later folders of its run wait: its curves must arrive in order."""
    name, folder = one.run.root.name, one.folder.name
    behind = any(earlier.run == name and earlier.outcome in ("failed", "in use") for earlier in before)
    if one.is_sent:
        return Sending(run=name, folder=folder, outcome="was sent")
    if is_in_use(one.run):
        return Sending(run=name, folder=folder, outcome="in use", reason="its training goes on. Send it afterwards")
    if dry_run:
        return Sending(run=name, folder=folder, outcome="waits")
    if behind:
        return Sending(run=name, folder=folder, outcome="waits", reason="for the folder before it")
    problem = send(one, secrets, seconds=seconds)
    return Sending(run=name, folder=folder, outcome="failed" if problem else "sent", reason=problem)
