"""runs and replay: the history of a stream, and one of its runs again."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from db import runs as run_table
from service import logs
from service.cli.console import JsonOption, RecipeOption, out, print_json, print_table, settings_for, when
from service.cli.run_view import print_run
from service.cycle.replay import Replayed
from service.cycle.replay import replay as train_again
from service.database import database
from service.errors import UsageError
from service.settings.home import Home
from service.settings.load import Settings
from trainer.run_dir import RunDirectory


def runs(
    run: Annotated[int | None, typer.Argument(help="Show this run in detail.", min=1, max=2**63 - 1)] = None,
    recipe: RecipeOption = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000_000)] = 20,
    as_json: JsonOption = False,
) -> None:
    """List the stream's runs, newest first, or show one run in detail."""
    settings = settings_for(recipe)
    if run is not None:
        _show(settings, run, as_json=as_json)
        return
    with database(settings) as pool:
        history = run_table.history(pool, settings.recipe.stream, limit=limit)
    if as_json:
        print_json([asdict(run) for run in history])
        return
    phased = any(r.phase for r in history)
    rows = [
        [r.run_id, *([r.phase] if phased else []), r.state, r.parent_version, r.launches, when(r.created_at), r.reason]
        for r in history
    ]
    columns = ["run", *(["phase"] if phased else []), "state", "parent", "starts", "claimed at", "reason"]
    print_table("runs", columns, rows)


def _show(settings: Settings, run_id: int, *, as_json: bool) -> None:
    with database(settings) as pool:
        found = run_table.get(pool, run_id)
    if found is None or found.stream != settings.recipe.stream:
        raise UsageError(f"the stream {settings.recipe.stream} has no run {run_id}; `codelupe runs` lists them")
    if as_json:
        print_json(asdict(found))
    else:
        print_run(found)


def replay(
    run: Annotated[str, typer.Argument(help="A run's number (see `codelupe runs`), or a run directory.")],
    to: Annotated[
        Path | None, typer.Option("--to", help="A folder to make. Default: replays/RUN below CODELUPE_HOME.")
    ] = None,
    recipe: RecipeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a run again in a fresh folder, and say whether the result is the same. Exit 1 if it is not."""
    settings = settings_for(recipe)
    home = Home(settings.home)
    directory = _run_directory(home, run)
    number = directory.root.name
    version = int(number) if number.isdecimal() else 0
    target = (to or home.root / "replays" / number).absolute()
    if target.is_relative_to(home.runs.absolute()):
        raise UsageError(f"{target} is among the service's own runs; choose another folder with --to")
    logs.set_up(settings.log_format)
    secrets = {name: value for name, value in settings.trainer_secrets.items() if name == "HF_TOKEN"}
    found = train_again(directory, home.adapter(version), target, secrets)
    if as_json:
        print_json(asdict(found))
    else:
        out.print(_said(found))
    if not found.same:
        raise typer.Exit(1)


def _run_directory(home: Home, run: str) -> RunDirectory:
    if run.isdecimal() and len(run) < 19:
        directory = home.run(int(run))
        if not directory.root.is_dir():
            raise UsageError(f"there is no run {run} in {home.runs}; `codelupe runs` lists them")
        return directory
    if not Path(run).is_dir():
        raise UsageError(f"{run!r} is neither a run's number nor a folder")
    return RunDirectory(Path(run).absolute())


def _said(found: Replayed) -> str:
    match found.compared, found.same:
        case "weights", True:
            return f"the same adapter, byte for byte: {found.folder}"
        case "weights", False:
            return (
                f"a different adapter: {found.folder} has {found.found[:12]}…, the run gave {found.expected[:12]}…. "
                "Another processor, number of threads or version of the program can be the reason"
            )
        case _, True:
            return f"the same losses (the run's adapter is gone): {found.folder}"
    return (
        f"different losses (the run's adapter is gone): {found.folder} has {found.found}, the run had {found.expected}"
    )
