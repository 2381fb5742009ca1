"""`codelupe …`: every command. `--json` on stdout, logs on stderr; exit 0 ok, 1 failed, 2 usage, 3 precondition."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TimeElapsedColumn

from db import adapters as adapter_table
from db import audit as audit_table
from db import chunks, embedded, streams
from db import lease as leases
from db import runs as run_table
from db.errors import DatabaseError
from service import logs
from service.cli.console import JsonOption, RecipeOption, out, print_json, print_table, settings_for, when
from service.cli.doctor import Finding, examine
from service.cli.preview import preview
from service.cli.provenance import lineage, revoke
from service.cycle.launch import plan_memory, show_samples, with_absolute_folder
from service.database import database
from service.errors import PreconditionError, ServiceError, UsageError
from service.intake.drop import Summary, drop_paths
from service.intake.history import MAX_COMMITS
from service.intake.hub import SCHEME
from service.intake.records import Given
from service.publish.editors import DEFAULT_URL, EDITORS, Connection, configuration
from service.publish.evidence import disk_problems
from service.publish.folders import retire, sync_pointer, verify_adapter
from service.settings.home import Home, only_service, running_service, stop_service
from service.settings.load import Settings, chosen_log_format
from service.up import up as run_service
from trainer.recipe import dump_recipe
from trainer.run_dir import RunDirectoryError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
STOP_WAIT_SECONDS = 120.0


def main() -> None:
    """Run a command; an error that we can explain is one message and an exit code."""
    try:
        app()
    except ServiceError as error:
        print(f"codelupe: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except DatabaseError as error:
        print(f"codelupe: {error}", file=sys.stderr)
        sys.exit(PreconditionError.exit_code)


@app.command()
def up(
    recipe: RecipeOption = None,
    once: Annotated[bool, typer.Option("--once", help="End after the first verdict.")] = False,
    port: Annotated[int | None, typer.Option(help="METRICS_PORT")] = None,
    model: Annotated[str | None, typer.Option(help="MODEL: another base than the recipe's.")] = None,
    demo: Annotated[
        bool | None,
        typer.Option(help="Fill an empty table with Python's standard library (by default the embedded one only)."),
    ] = None,
) -> None:
    """Run the service: poll, train, judge, publish, for as long as it is left running."""
    log_format = chosen_log_format()
    logs.set_up(log_format)
    say = logs.sayer(log_format)
    try:
        settings = settings_for(recipe, METRICS_PORT=None if port is None else str(port), MODEL=model)
        wanted = (settings.recipe.service.demo_corpus and settings.database_url is None) if demo is None else demo
        verdict = run_service(settings, once=once, demo_corpus=wanted, say=say)
    except (ServiceError, DatabaseError) as error:
        if log_format == "text":  # a message for a person, on lines of its own
            raise
        code = error.exit_code if isinstance(error, ServiceError) else PreconditionError.exit_code
        logs.event("The service has to end", level=logging.ERROR, reason=str(error), exit_code=code)
        raise typer.Exit(code) from error
    if once:
        outcome = ("published" if verdict.promote else "refused") if verdict else "none"
        reason = verdict.text() if verdict else "no verdict"
        if log_format == "text":
            out.print(f"verdict: {outcome}: {escape(reason)}" if verdict else reason)
        else:
            say("verdict", reason, outcome=outcome)
        raise typer.Exit(0 if verdict and verdict.promote else 1)


@app.command()
def stop(recipe: RecipeOption = None) -> None:
    """End the service of this folder, its trainer and its database; a run in progress is resumed by the next start."""
    home = Home(settings_for(recipe).home)
    pid = stop_service(home, wait_seconds=STOP_WAIT_SECONDS)
    was_left = embedded.stop(home.postgres)
    out.print(f"service (process {pid}) stopped" if pid else "no service was running")
    if was_left:
        out.print("embedded database stopped")


@app.command()
def drop(
    paths: Annotated[
        list[str] | None,
        typer.Argument(help="Files, folders, git checkouts, JSONL, Parquet, or hf://owner/name for a dataset."),
    ] = None,
    dataset: Annotated[list[str] | None, typer.Option(help="A dataset of the Hub, owner/name.")] = None,
    score: Annotated[
        float | None, typer.Option(help="Quality score of rows without one; by default a heuristic's.")
    ] = None,
    repository: Annotated[str | None, typer.Option(help="Repository name; the folder's by default.")] = None,
    phase: Annotated[str | None, typer.Option(help="Phase of a curriculum that the rows belong to.")] = None,
    history: Annotated[
        bool, typer.Option("--history", help="Of git checkouts, a row for each changed file of each commit.")
    ] = False,
    commits: Annotated[int, typer.Option(min=1, help="With --history: the newest commits, so many.")] = MAX_COMMITS,
    train_now: Annotated[bool, typer.Option("--train-now", help="Do not wait for MIN_NEW_FILES.")] = False,
    recipe: RecipeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Drop files into the database; the service trains on them when there are enough."""
    settings = settings_for(recipe)
    sources = [*(paths or []), *(SCHEME + name for name in dataset or [])]
    if not sources:
        raise UsageError("nothing to drop: name files, folders, JSONL, Parquet or a dataset (codelupe drop --help)")
    missing = [name for name in sources if not name.startswith(SCHEME) and not os.path.lexists(name)]
    if missing:
        raise UsageError(f"no such file or folder: {', '.join(missing)}")
    if settings.source.name != "code_files":
        raise UsageError(
            f"drop writes to code_files only; SOURCE_TABLE is {settings.source.name}: insert there yourself"
        )
    with database(settings) as pool:
        with _drop_progress() as on_progress:
            summary = drop_paths(
                pool,
                sources,
                Given(score=score, repository=repository, phase=phase),
                history_commits=commits if history else 0,
                token=settings.trainer_secrets.get("HF_TOKEN"),
                on_progress=on_progress,
            )
        if train_now:
            streams.request_training(pool, settings.recipe.stream)
        pending = chunks.count(pool, settings.source, settings.eligibility, settings.recipe.stream)
    if as_json:
        print_json({"inserted": summary.inserted, "passed_over": summary.skipped, "pending": pending})
        return
    _say_dropped(summary, pending, settings, train_now)


@contextmanager
def _drop_progress() -> Iterator[Callable[[Summary], None]]:
    """A bar on stderr where that is a terminal; what comes is not known beforehand, so it shows counts and a rate."""
    columns = ("{task.description}", BarColumn(), "{task.fields[counts]}", TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("reading", total=None, counts="")

        def show(summary: Summary) -> None:
            counts = f"{summary.inserted:,} inserted, {summary.skipped.total():,} passed over"
            seconds = progress.tasks[0].elapsed or 0.0
            rate = f", {summary.seen / seconds:,.0f} a second" if seconds > 1 else ""
            progress.update(task, counts=counts + rate)

        yield show


def _say_dropped(summary: Summary, pending: int, settings: Settings, train_now: bool) -> None:
    out.print(f"{summary.inserted} rows inserted, {summary.skipped.total()} files passed over")
    if summary.skipped:
        print_table("passed over", ["why", "files"], [[why, count] for why, count in summary.skipped.most_common()])
    if pending >= settings.min_new_files or train_now:
        out.print(f"{pending} rows pending: a run starts at the next poll of a running service")
    else:
        out.print(f"{pending} rows pending; a run starts at {settings.min_new_files} (or with --train-now)")


@app.command()
def status(recipe: RecipeOption = None, as_json: JsonOption = False) -> None:
    """Where the stream stands."""
    settings = settings_for(recipe)
    home, stream = Home(settings.home), settings.recipe.stream
    with database(settings) as pool:
        totals = run_table.totals(pool, stream)
        current = adapter_table.current(pool, stream)
        live = run_table.live(pool, stream)
        pending = chunks.count(pool, settings.source, settings.eligibility, stream)
        held = leases.holder(pool, stream)
    facts: dict[str, Any] = {
        "stream": stream,
        "service": running_service(home),
        "lease_held_by": held[0] if held else None,
        "live_run": f"{live.run_id} ({live.state})" if live else None,
        "current_version": current.version if current else None,
        "pending_rows": pending,
        "rows": totals.rows,
        "runs": totals.runs,
        "trained_tokens": totals.trained_tokens,
        "last_success": totals.last_success_at,
    }
    if as_json:
        print_json(facts)
        return
    facts["service"] = f"process {facts['service']}" if facts["service"] else "not running in this folder"
    for name in ("rows", "runs"):
        facts[name] = ", ".join(f"{count} {what}" for what, count in sorted(facts[name].items()))
    print_table("", ["", ""], [[name.replace("_", " "), value] for name, value in facts.items()])


@app.command()
def runs(
    recipe: RecipeOption = None,
    limit: Annotated[int, typer.Option(min=1)] = 20,
    as_json: JsonOption = False,
) -> None:
    """Runs of the stream, newest first."""
    settings = settings_for(recipe)
    with database(settings) as pool:
        history = run_table.history(pool, settings.recipe.stream, limit=limit)
    if as_json:
        print_json([asdict(run) for run in history])
        return
    rows = [[r.run_id, r.state, r.parent_version, r.launches, when(r.created_at), r.reason] for r in history]
    print_table("runs", ["run", "state", "parent", "starts", "claimed at", "reason"], rows)


@app.command()
def adapters(recipe: RecipeOption = None, as_json: JsonOption = False) -> None:
    """Published adapters, newest first."""
    settings = settings_for(recipe)
    with database(settings) as pool:
        history = adapter_table.history(pool, settings.recipe.stream)
    if as_json:
        print_json([asdict(adapter) for adapter in history])
        return
    rows = [
        [a.version, "current" if a.is_current else "", a.parent_version, _loss(a, "current"), _loss(a, "candidate"),
         when(a.published_at)]
        for a in history
    ]  # fmt: skip
    print_table("adapters", ["version", "", "parent", "loss before", "loss after", "published at"], rows)


def _loss(adapter: adapter_table.Adapter, name: str) -> str:
    value = adapter.evaluation.get("losses", {}).get(name)
    return f"{value:.4f}" if isinstance(value, float) else ""


@app.command()
def rollback(
    version: Annotated[int, typer.Argument(help="Version to make current again (see `codelupe adapters`).")],
    recipe: RecipeOption = None,
) -> None:
    """Make an earlier adapter current; the running service follows at its next poll."""
    settings = settings_for(recipe)
    home, stream = Home(settings.home), settings.recipe.stream
    if not home.adapter(version).is_dir():
        raise UsageError(f"{home.adapter(version)} is not there: retention removed it, or it never was")
    with database(settings) as pool:
        for adapter in adapter_table.history(pool, stream):
            if adapter.version == version:
                try:
                    verify_adapter(home, adapter)
                except RunDirectoryError as error:
                    raise PreconditionError(str(error)) from error
        adapter_table.roll_back(pool, stream, version)
        try:
            sync_pointer(home, stream, adapter_table.current(pool, stream))
        except OSError as error:
            raise PreconditionError(
                f"version {version} is current now, and {home.pointer(stream)} cannot be moved: {error}"
            ) from error
    out.print(f"{home.pointer(stream)} → version {version}")


@app.command()
def connect(
    editor: Annotated[str, typer.Argument(help=f"One of {', '.join(EDITORS)}.")],
    url: Annotated[str, typer.Option(help="The served API, as the editor reaches it.")] = DEFAULT_URL,
    show_key: Annotated[bool, typer.Option("--show-key", help="Write VLLM_API_KEY out instead of its place.")] = False,
    recipe: RecipeOption = None,
) -> None:
    """Print an editor's configuration for the served model; where it belongs is said on stderr."""
    key = settings_for(recipe).vllm_api_key if show_key else None
    if show_key and key is None:
        raise PreconditionError("there is no key to show: VLLM_API_KEY is not set")
    found = configuration(editor, Connection(url=url.rstrip("/"), key=key))
    print(found.text, end="")
    print(f"→ {found.advice}", file=sys.stderr)


@app.command()
def plan(
    recipe: RecipeOption = None,
    card: Annotated[str | None, typer.Option(help="A card by short name: rtx-5090, a100-80, h100, …")] = None,
    vram_gib: Annotated[float | None, typer.Option(min=0.1, help="Memory of the card, in GiB.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Predict memory and speed from the recipe alone, and choose the fastest way that fits. Exit 3 when none does."""
    settings = settings_for(recipe)
    arguments = ["--json"] if as_json else []
    arguments += [] if card is None else ["--card", card]
    arguments += [] if vram_gib is None else ["--vram-gib", str(vram_gib)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{settings.recipe.name}.yaml"
        path.write_text(dump_recipe(with_absolute_folder(settings.recipe)), encoding="utf-8")
        code = plan_memory(path, arguments, settings.trainer_secrets)
    raise typer.Exit(code)


@app.command()
def doctor(recipe: RecipeOption = None, as_json: JsonOption = False) -> None:
    """Look at folders, disk, database, card, memory, base, Hub and W&B. Exit 1 when something has to be mended."""
    findings = []
    for finding in examine(settings_for(recipe)):
        findings.append(finding)
        if not as_json:
            _say_finding(finding)
    failed = sum(finding.state == "failed" for finding in findings)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        out.print(f"{failed} of {len(findings)} have to be mended" if failed else "all is well")
    if failed:
        raise typer.Exit(1)


def _say_finding(finding: Finding) -> None:
    mark = {"ok": "[green]ok[/green]    ", "note": "[yellow]note[/yellow]  ", "failed": "[red]FAILED[/red]"}[
        finding.state
    ]
    out.print(f"{mark} {finding.check:<12} {escape(finding.said)}")
    if finding.mend:
        out.print(f"       {'':<12} → {escape(finding.mend)}")


@app.command()
def samples(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(help="Files, folders, JSONL, or a run directory with its own recipe. Default: the last run."),
    ] = None,
    recipe: RecipeOption = None,
    builder: Annotated[str | None, typer.Option(help="This builder alone, whatever the recipe weighs.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Show at most so many samples.")] = 20,
    plain: Annotated[bool, typer.Option("--plain", help="Marks instead of colours.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what the model would see, and what of it would be learned."""
    settings = settings_for(recipe)
    arguments = ["--limit", str(limit)]
    arguments += ["--builder", builder] if builder is not None else []
    arguments += ["--plain"] if plain or os.environ.get("NO_COLOR") else []
    arguments += ["--json"] if as_json else []
    with preview(settings, paths or [], recipe_given=recipe is not None) as shown:
        for line in shown.passed_over:
            print(f"passed over: {line}", file=sys.stderr)
        arguments += ["--seed", str(shown.seed)] if shown.seed is not None else []
        code = show_samples(shown.recipe_file, shown.rows_file, arguments, settings.trainer_secrets)
    raise typer.Exit(code)


@app.command()
def audit(
    books_only: Annotated[
        bool, typer.Option("--books-only", help="The database alone: read no adapter's bytes and no run's folder.")
    ] = False,
    recipe: RecipeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Prove that every row is ineligible, pending, claimed or settled, that the sums reconcile, and that the published
    adapters and their lineage are what was published. Exit 1 if not."""
    settings = settings_for(recipe)
    with database(settings) as pool:
        found = audit_table.audit(pool, settings.source, settings.eligibility, settings.recipe.stream)
        if not books_only:
            on_disk = disk_problems(Home(settings.home), pool, settings.recipe.stream)
            found = replace(found, problems=[*found.problems, *on_disk])
    if as_json:
        print_json(asdict(found))
    else:
        _say_audit(found)
    if found.problems:
        raise typer.Exit(1)


def _say_audit(found: audit_table.Audit) -> None:
    rows: list[list[Any]] = [["pending", found.pending], ["claimed by a live run", found.claimed]]
    rows += [[f"ineligible: {reason}", count] for reason, count in sorted(found.ineligible.items())]
    rows += [[f"settled: {name}", count] for name, count in sorted(found.settled.items())]
    print_table(f"{found.total} rows in the source", ["class", "rows"], [*rows, ["total", found.total]])
    out.print(
        f"{found.trained_rows} rows trained into {found.published_runs} published runs, {found.trained_tokens} tokens"
    )
    for problem in found.problems:
        out.print(f"PROBLEM: {escape(problem)}")
    out.print("no row lost, none trained twice" if not found.problems else f"{len(found.problems)} problems")


app.command()(lineage)
app.command()(revoke)


@app.command()
def gc(recipe: RecipeOption = None) -> None:
    """Remove adapters beyond KEEP_ADAPTERS and leftovers of interrupted writes."""
    settings = settings_for(recipe)
    home = Home(settings.home)
    if running_service(home) is not None:
        raise PreconditionError("the service runs, and tidies by itself after each verdict; stop it first")
    home.prepare()
    with database(settings) as pool, only_service(home):  # or one starts: a claim looks like a leftover
        here = adapter_table.history(pool, settings.recipe.stream, among=home.adapter_versions())
        removed = retire(home, here, settings.keep_adapters)
    for folder in removed:
        out.print(f"removed {folder}")
    out.print(f"{len(removed)} folders removed")
