"""The commands drop and samples."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from db import chunks, streams
from db import lease as leases
from db import runs as run_table
from db.errors import DatabaseError
from db.pool import Pool
from service.cli.console import JsonOption, RecipeOption, out, print_json, settings_for
from service.cli.look import look, passed_over_json, print_look, print_passed_over
from service.cli.preview import preview
from service.cli.progress import progress_shown
from service.cycle.trainer_commands import show_samples
from service.database import check_may_insert, database
from service.errors import PreconditionError, UsageError
from service.intake.drop import Summary, drop_paths
from service.intake.fields import NAMES
from service.intake.history import MAX_COMMITS
from service.intake.hub import SCHEME
from service.intake.reading import default_jobs
from service.intake.records import Given
from service.settings.load import Settings
from service.visible import visible


def drop(
    paths: Annotated[
        list[str] | None,
        typer.Argument(help="Files, folders, git checkouts, records (JSONL, JSON, CSV, Parquet), or hf://owner/name."),
    ] = None,
    dataset: Annotated[list[str] | None, typer.Option(help="Hub dataset, as owner/name.")] = None,
    score: Annotated[
        float | None,
        typer.Option(min=-1e6, max=1e6, help="Quality score for rows without one. Default: computed by a heuristic."),
    ] = None,
    repository: Annotated[str | None, typer.Option(help="Repository name. Default: the folder's name.")] = None,
    phase: Annotated[str | None, typer.Option(help="Curriculum phase of the rows.")] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(help="Name of a records' column, as ours=theirs (content=body). May be repeated."),
    ] = None,
    history: Annotated[
        bool, typer.Option("--history", help="For git checkouts: one row for each changed file of each commit.")
    ] = False,
    commits: Annotated[int, typer.Option(min=1, help="With --history: number of commits, newest first.")] = MAX_COMMITS,
    train_now: Annotated[bool, typer.Option("--train-now", help="Do not wait for MIN_NEW_FILES.")] = False,
    include_vendored: Annotated[
        bool, typer.Option("--include-vendored", help="Take folders such as node_modules, vendor and build, too.")
    ] = False,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, max=256, help="Processes that read many files of folders. Default: the cores less two."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be taken. Needs no database, and writes nothing.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Name each file that is passed over, and why.")] = False,
    recipe: RecipeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Insert files into the database. The service trains on them when there are enough."""
    settings = settings_for(recipe)
    sources = [*(paths or []), *(SCHEME + name for name in dataset or [])]
    if not sources:
        raise UsageError("nothing to drop. Name files, folders, records or a dataset (codelupe drop --help)")
    _check_phase(settings, phase)
    columns = _columns(column or [])
    missing = [name for name in sources if not name.startswith(SCHEME) and not os.path.lexists(name)]
    if missing:
        raise UsageError(f"no such file or folder: {', '.join(missing)}")
    given = Given(score=score, repository=repository, phase=phase, columns=columns, include_vendored=include_vendored)
    token = settings.trainer_secrets.get("HF_TOKEN")
    history_commits = commits if history else 0
    if dry_run:
        if train_now:
            raise UsageError("--dry-run writes nothing, so it cannot ask for a run. Leave out --train-now")
        found = look(sources, given, history_commits, token, names=verbose)
        print_json(found.as_json()) if as_json else print_look(found)
        raise typer.Exit(1 if found.summary.barren else 0)
    summary = Summary(passed_over=[] if verbose else None)
    waiting = _insert(settings, sources, given, summary, history_commits, token, train_now=train_now, jobs=jobs)
    if as_json:
        counts = {"pending": waiting.rows, "service_running": waiting.holder is not None}
        print_json({"inserted": summary.inserted, **passed_over_json(summary), **counts})
    else:
        _print_dropped(summary, waiting, settings, train_now)
    if summary.barren:
        raise typer.Exit(1)


def _insert(
    settings: Settings,
    sources: list[str],
    given: Given,
    summary: Summary,
    history_commits: int,
    token: str | None,
    *,
    train_now: bool,
    jobs: int | None,
) -> _Waiting:
    """Insert the rows of the sources, and look at what waits then. Fills `summary`."""
    if settings.source.name != "code_files":
        raise UsageError(
            f"drop writes to code_files only, but SOURCE_TABLE is {settings.source.name}. Insert the rows yourself"
        )
    with database(settings) as pool:
        check_may_insert(pool, settings)
        try:
            with progress_shown(settings.log_format):
                drop_paths(
                    pool, sources, given, summary,
                    history_commits=history_commits, token=token, jobs=jobs or default_jobs(),
                )  # fmt: skip
            if train_now:
                streams.request_training(pool, settings.recipe.stream)
            return _look(pool, settings)
        except DatabaseError as error:
            raise PreconditionError(f"{error}. {_so_far(summary)}") from error


def _check_phase(settings: Settings, phase: str | None) -> None:
    """Refuse a phase that the recipe does not have: its rows would never be trained on."""
    recipe = settings.recipe
    if phase is not None and recipe.phases and phase not in recipe.phase_names:
        known = ", ".join(recipe.phase_names)
        raise UsageError(f"--phase: {phase!r} is not a phase of the recipe {recipe.name}, which has {known}")


def _columns(given: list[str]) -> dict[str, str]:
    """Read --column."""
    columns: dict[str, str] = {}
    for pair in given:
        ours, found, theirs = pair.partition("=")
        if not found or ours not in NAMES or not theirs:
            raise UsageError(f"--column: {pair!r} is not ours=theirs, with ours one of {', '.join(NAMES)}")
        columns[ours] = theirs
    return columns


@dataclass(frozen=True, kw_only=True)
class _Waiting:
    """What waits for a run, and who would start it."""

    rows: int
    holder: str | None
    """The service that has the stream."""
    live: run_table.Run | None


def _look(pool: Pool, settings: Settings) -> _Waiting:
    stream = settings.recipe.stream
    held = leases.holder(pool, stream)
    return _Waiting(
        rows=chunks.count(pool, settings.source, settings.eligibility, stream),
        holder=held[0] if held else None,
        live=run_table.live(pool, stream),
    )


def _so_far(summary: Summary) -> str:
    """What was committed before an error. The batch of the error may have been committed too."""
    return f"At least {summary.inserted} rows were inserted before. Repeat the command: it skips rows that are there"


def _print_dropped(summary: Summary, waiting: _Waiting, settings: Settings, train_now: bool) -> None:
    out.print(f"{summary.inserted} rows inserted, {summary.skipped.total()} files skipped")
    print_passed_over(summary)
    out.print(f"{waiting.rows} rows pending. {_next(waiting, settings, train_now)}")


def _next(waiting: _Waiting, settings: Settings, train_now: bool) -> str:
    """What happens next. A service may pause, which the database does not tell."""
    enough = waiting.rows >= settings.min_new_files or (train_now and waiting.rows > 0)
    if waiting.holder is None:
        when = "" if enough else f" A run starts at {settings.min_new_files} rows, or with --train-now"
        return f"No service is running. Start it with `codelupe up`.{when}"
    if not enough:
        return (
            "A run starts as soon as there is one"
            if train_now
            else (f"A run starts at {settings.min_new_files}, or with --train-now")
        )
    if waiting.live is not None:
        return f"A run starts after run {waiting.live.run_id}, which is {waiting.live.state}"
    return "The service starts a run at its next poll, or after its pause if it is paused (see /health)"


def samples(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(help="Files, folders, JSONL, or a run directory with its own recipe. Default: the last run."),
    ] = None,
    recipe: RecipeOption = None,
    builder: Annotated[str | None, typer.Option(help="Use only this builder, and ignore the recipe's weights.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of samples to show.")] = 20,
    plain: Annotated[bool, typer.Option("--plain", help="Mark text with symbols instead of colours.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show the training samples, and which of their tokens have loss."""
    settings = settings_for(recipe)
    arguments = ["--limit", str(limit)]
    arguments += ["--builder", builder] if builder is not None else []
    arguments += ["--plain"] if plain or os.environ.get("NO_COLOR") else []
    arguments += ["--json"] if as_json else []
    with preview(settings, paths or [], recipe_given=recipe is not None) as shown:
        for line in shown.skipped:
            print(f"skipped: {visible(line)}", file=sys.stderr)
        arguments += ["--seed", str(shown.seed)] if shown.seed is not None else []
        code = show_samples(shown.recipe_file, shown.rows_file, arguments, settings.trainer_secrets)
    raise typer.Exit(code)
