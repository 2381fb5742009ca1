"""`codelupe doctor`: checks whether this machine can run the service. Each failure names the command that fixes it."""

from __future__ import annotations

import json
import shlex
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from db import migrate, rights
from db.errors import DatabaseError, Misconfigured
from db.pool import Pool
from db.source import check_source
from service.alerts.alerting import trial_alert
from service.alerts.targets import open_targets, try_all
from service.cycle.trainer_commands import examine_trainer, with_absolute_folder
from service.database import database, shown_url
from service.errors import PreconditionError, SettingsError
from service.settings.home import Home
from service.settings.load import Settings
from trainer.recipe_file import dump_recipe

TRAINER_SECONDS = 180.0
"""Time limit of the trainer's checks. Importing torch takes seconds, and the Hub or W&B may not answer."""
EDIT = "${EDITOR:-vi} .env"
ALERTS = "correct ALERT_URLS in .env or in the environment, then `codelupe alert-test`"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of one check."""

    check: str
    state: Literal["ok", "note", "failed"]
    """`note`: not a failure, but worth knowing."""
    said: str
    mend: str | None = None
    """For a failure: the command that fixes it."""


def examine(settings: Settings) -> Iterator[Finding]:
    """Run all checks, the quick ones first."""
    folders = folders_finding(Home(settings.home))
    yield folders
    if folders.state == "ok":
        yield disk_finding(Home(settings.home))
        yield from database_findings(settings)
    yield from alert_findings(settings)
    yield from trainer_findings(settings)


def folders_finding(home: Home) -> Finding:
    """Check that all folders of CODELUPE_HOME are writable."""
    try:
        home.prepare()
    except PreconditionError as error:
        return Finding(
            check="folders", state="failed", said=str(error), mend=f'sudo chown -R "$(id -u):$(id -g)" {home.root}'
        )
    return Finding(check="folders", state="ok", said=f"{home.root} and its folders are writable")


def disk_finding(home: Home) -> Finding:
    """Check for the free space that a claim requires: twice the size of a run."""
    free, needed = home.free_bytes(), 2 * home.run_bytes()
    said = f"{free / 1e9:.1f} GB are free for {home.runs} and {home.models}; a run requires {needed / 1e9:.1f} GB"
    if free < needed:
        return Finding(check="disk", state="failed", said=said, mend="codelupe stop; codelupe gc")
    return Finding(check="disk", state="ok", said=said)


# --- the database -------------------------------------------------------------------------------------------


def database_findings(settings: Settings) -> Iterator[Finding]:
    """Check the database's connection, migrations and source table, without changing anything."""
    url = settings.database_url
    name = "the embedded database" if url is None else shown_url(url)
    try:
        with database(settings, migrated=False) as pool:
            with pool.transaction(read_only=True) as cursor:
                cursor.execute("show server_version")
                row = cursor.fetchone()
            version = row[0] if row else "?"
            through = " through a connection pooler" if pool.is_pooled() else ""
            yield Finding(check="database", state="ok", said=f"PostgreSQL {version} answers{through} ({name})")
            for check in (rights_finding, migrations_finding, source_finding):
                finding = check(pool, settings)
                yield finding
                if finding.state == "failed" or (finding.check, finding.state) == ("migrations", "note"):
                    return
    except Misconfigured as error:
        yield Finding(check="database", state="failed", said=str(error), mend=EDIT)
    except (DatabaseError, PreconditionError) as error:
        mend = "codelupe stop" if url is None else "docker-compose up -d postgres"
        yield Finding(check="database", state="failed", said=f"{name}: {error}", mend=mend)


def rights_finding(pool: Pool, settings: Settings) -> Finding:
    """Check the role's rights on what exists: our tables, and the source."""
    with pool.transaction(read_only=True) as cursor:
        role = rights.current_role(cursor)
        missing = rights.missing(cursor, role, settings.source)
    needed = [right.statement for right in missing if right.needed_by == rights.SERVICE]
    if needed:
        said = f"the role {role} lacks rights that the service needs"
        return Finding(check="rights", state="failed", said=said, mend=f"{_psql(needed)}  # {_migrate_command(role)}")
    if missing:
        said = f"the role {role} has no right for {missing[0].needed_by}: {missing[0].statement}"
        return Finding(check="rights", state="note", said=said)
    return Finding(check="rights", state="ok", said=f"the role {role} may use all that exists")


def migrations_finding(pool: Pool, settings: Settings) -> Finding:
    """Check that the tables match this version. The service migrates older tables when it starts, if it may."""
    try:
        outstanding = migrate.pending(pool, settings.source)
    except Misconfigured as error:
        return Finding(check="migrations", state="failed", said=str(error), mend="git pull && make install")
    if not outstanding:
        return Finding(check="migrations", state="ok", said="all migrations are applied")
    ours = [name for name in outstanding if not name.startswith("source/")]
    with pool.transaction(read_only=True) as cursor:
        role = rights.current_role(cursor)
        needed = rights.missing_to_create(cursor, role, ours=bool(ours), source=len(ours) < len(outstanding))
        owner = not ours or rights.owns_all(cursor, role)
    listed = ", ".join(outstanding)
    if needed or not owner:
        said = f"{listed}: the role {role} may not apply them"
        command = _migrate_command(role)
        mend = f"{_psql(needed)}  # {command}" if needed and owner else command.removeprefix("or, ")
        return Finding(check="migrations", state="failed", said=said, mend=mend)
    return Finding(check="migrations", state="note", said=f"{listed}: the next `codelupe up` applies them")


def _psql(statements: list[str]) -> str:
    return f"psql -c {shlex.quote('; '.join(statements))}"


def _migrate_command(role: str) -> str:
    return f"or, as an owner of the database: codelupe migrate --role {shlex.quote(role)}"


def source_finding(pool: Pool, settings: Settings) -> Finding:
    """Check that SOURCE_TABLE is readable and has the required columns."""
    try:
        check_source(pool, settings.source)
    except Misconfigured as error:
        return Finding(check="source", state="failed", said=str(error), mend=EDIT)
    return Finding(check="source", state="ok", said=f"{settings.source.name} is readable")


# --- the alerts ---------------------------------------------------------------------------------------------


def alert_findings(settings: Settings) -> Iterator[Finding]:
    """Send a test message to each target of ALERT_URLS."""
    try:
        targets = open_targets(settings.alert_urls)
    except SettingsError as error:
        yield Finding(check="alerts", state="failed", said="; ".join(error.problems), mend=ALERTS)
        return
    for target, refusal in try_all(targets, trial_alert(settings)):
        if refusal is None:
            yield Finding(check="alerts", state="ok", said=f"{target.name} took a test message")
        else:
            said = f"{target.name} did not take a test message: {refusal.reason}"
            yield Finding(check="alerts", state="failed", said=said, mend=ALERTS)


# --- the trainer --------------------------------------------------------------------------------------------


def trainer_findings(settings: Settings, training: Path | None = None) -> Iterator[Finding]:
    """Run the trainer's checks (card, base model, Hub, W&B) in their own process.

    Args:
        training: where a training is going to write. Cards, memory and disk are then checked for all of it
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{settings.recipe.name}.yaml"
        path.write_text(dump_recipe(with_absolute_folder(settings.recipe)), encoding="utf-8")
        output, errors = examine_trainer(path, settings.trainer_secrets, seconds=TRAINER_SECONDS, folder=training)
    lines = output.splitlines()
    for line in lines:
        yield Finding(**json.loads(line))
    if not lines or json.loads(lines[-1])["check"] != "wandb":  # wandb is the last check: the process ended early
        said = " ".join(errors.split())[-400:] or "it ended without an error message"
        yield Finding(check="trainer", state="failed", said=f"`python -m trainer doctor`: {said}", mend="make install")
