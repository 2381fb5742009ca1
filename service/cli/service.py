"""The commands up, stop and status."""

from __future__ import annotations

import logging
from typing import Annotated, Any

import typer

from db import adapters as adapter_table
from db import chunks, embedded, holds
from db import lease as leases
from db import runs as run_table
from db.errors import DatabaseError
from service import logs
from service.cli.console import JsonOption, RecipeOption, out, print_json, print_table, settings_for
from service.cli.progress import progress_shown
from service.cli.watch import watch as watch_stream
from service.database import database
from service.errors import PreconditionError, ServiceError
from service.settings.environment import chosen_log_format
from service.settings.home import Home, running_service, stop_service
from service.up import up as run_service

STOP_WAIT_SECONDS = 120.0

OUTCOMES = {"promote": "published", "refuse": "refused", "inconclusive": "inconclusive"}
"""What `codelupe up --once` reports for each decision."""


def up(
    recipe: RecipeOption = None,
    once: Annotated[bool, typer.Option("--once", help="Stop after the first verdict.")] = False,
    port: Annotated[int | None, typer.Option(help="Port of the HTTP server (METRICS_PORT).")] = None,
    model: Annotated[str | None, typer.Option(help="Base model to use instead of the recipe's (MODEL).")] = None,
    demo: Annotated[
        bool | None,
        typer.Option(help="Fill an empty table with Python's standard library. Default: embedded database only."),
    ] = None,
) -> None:
    """Run the service until it is stopped: poll, train, judge and publish."""
    log_format = chosen_log_format()
    logs.set_up(log_format)
    show = logs.progress_printer(log_format)
    try:
        settings = settings_for(recipe, METRICS_PORT=None if port is None else str(port), MODEL=model)
        wanted = (settings.recipe.service.demo_corpus and settings.database_url is None) if demo is None else demo
        with progress_shown(log_format, only_in_terminal=True):
            verdict = run_service(settings, once=once, demo_corpus=wanted, show=show)
    except (ServiceError, DatabaseError) as error:
        if log_format == "text":  # main() prints a readable message
            raise
        code = error.exit_code if isinstance(error, ServiceError) else PreconditionError.exit_code
        logs.event("Service failed", level=logging.ERROR, reason=str(error), exit_code=code)
        raise typer.Exit(code) from error
    if once:
        outcome = OUTCOMES[verdict.decision] if verdict else "none"
        reason = verdict.text() if verdict else "no verdict"
        if log_format == "text":
            logs.print_line(f"verdict: {outcome}: {reason}" if verdict else reason)
        else:
            show("verdict", reason, outcome=outcome)
        raise typer.Exit(0 if verdict and verdict.promote else 1)


def stop(recipe: RecipeOption = None) -> None:
    """Stop this folder's service, its trainer and its database. The next start resumes a run in progress."""
    home = Home(settings_for(recipe).home)
    pid = stop_service(home, wait_seconds=STOP_WAIT_SECONDS)
    was_left = embedded.stop(home.postgres)
    out.print(f"service (process {pid}) stopped" if pid else "no service was running")
    if was_left:
        out.print("embedded database stopped")


def status(
    recipe: RecipeOption = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it again and again, until Ctrl-C. Lines where there is no terminal.")
    ] = False,
    every: Annotated[
        float, typer.Option(min=0.2, max=3600, metavar="SECONDS", help="With --watch: seconds between two looks.")
    ] = 2.0,
    as_json: JsonOption = False,
) -> None:
    """Show the state of the stream."""
    settings = settings_for(recipe)
    if watch:
        watch_stream(settings, every=every, as_json=as_json)
        return
    home, stream = Home(settings.home), settings.recipe.stream
    with database(settings) as pool:
        totals = run_table.totals(pool, stream)
        current = adapter_table.current(pool, stream)
        live = run_table.live(pool, stream)
        pending = chunks.count(pool, settings.source, settings.eligibility, stream)
        held = leases.holder(pool, stream)
        pause = holds.held(pool, stream)
    facts: dict[str, Any] = {
        "stream": stream,
        "service": running_service(home),
        "lease_held_by": held[0] if held else None,
        "paused_since": pause.since if pause else None,
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
    print_table(None, [], [[name.replace("_", " "), value] for name, value in facts.items()])
