"""audit, lineage and revoke: what became of each file."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from typing import Annotated, Any

import typer
from rich.markup import escape

from db import adapters, revocations
from db import audit as audit_table
from db.revocations import Lineage, Subject
from service.cli.console import JsonOption, RecipeOption, out, print_json, print_table, settings_for, when
from service.database import database
from service.errors import PreconditionError, UsageError
from service.publish.evidence import disk_problems
from service.publish.folders import sync_pointer
from service.settings.home import Home

FileArgument = Annotated[
    str | None, typer.Argument(help="Row id (-- before a negative one), or path, optionally as repository/path.")
]
HashOption = Annotated[str | None, typer.Option("--sha256", help="SHA-256 of the text, instead of a file.")]


def lineage(
    file: FileArgument = None, sha256: HashOption = None, recipe: RecipeOption = None, as_json: JsonOption = False
) -> None:
    """Show which runs and adapters saw a file."""
    settings, subject = settings_for(recipe), _subject(file, sha256)
    with database(settings) as pool:
        found = revocations.lineage(pool, settings.source, settings.recipe.stream, subject)
    if as_json:
        print_json(asdict(found))
        return
    _print_lineage(found)


def revoke(
    file: FileArgument = None,
    sha256: HashOption = None,
    reason: Annotated[str, typer.Option(help="Reason, stored with the revocation.")] = "asked for",
    retrain: Annotated[
        bool,
        typer.Option("--retrain", help="Return to the last adapter that never saw the file, and retrain from there."),
    ] = False,
    recipe: RecipeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Never train on a file again, and list the adapters that saw it. --retrain withdraws those adapters."""
    settings, subject = settings_for(recipe), _subject(file, sha256)
    _check_text("--reason", reason)
    home, stream = Home(settings.home), settings.recipe.stream
    with database(settings) as pool:
        if retrain:
            _check_ancestor(home, revocations.lineage(pool, settings.source, stream, subject))
        found = revocations.revoke(pool, settings.source, stream, subject, reason=reason, begin_anew=retrain)
        if retrain:
            try:
                sync_pointer(home, stream, adapters.current(pool, stream))
            except OSError as error:
                raise PreconditionError(f"revoked, but {home.pointer(stream)} cannot be updated: {error}") from error
    if as_json:
        print_json(asdict(found))
        return
    _print_lineage(found)
    if found.adapters and not retrain:
        out.print("these adapters stay published. Use --retrain to withdraw them")


def _subject(file: str | None, sha256: str | None) -> Subject:
    if (file is None) == (sha256 is None):
        raise UsageError("name one file: its id, its path, or --sha256 of its text")
    if sha256 is not None:
        if not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
            raise UsageError(f"--sha256: {sha256!r} is not 64 hexadecimal digits")
        return Subject(sha256=sha256.lower())
    assert file is not None
    if not file:
        raise UsageError("the path is empty")
    _check_text("the path", file)
    if re.fullmatch(r"-?\d{1,19}", file) and -(2**63) <= int(file) < 2**63:
        return Subject(file_id=int(file))
    return Subject(path=file)


def _check_text(name: str, text: str) -> None:
    """Reject text that is not UTF-8: a terminal can pass any bytes, but the database stores text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{name}: {text!r} is not UTF-8") from None


def _check_ancestor(home: Home, found: Lineage) -> None:
    """Check that the folder of the adapter to return to exists."""
    clean = found.clean_ancestor
    current = any(adapter.is_current for adapter in found.adapters)
    if current and clean is not None and not home.adapter(clean).is_dir():
        raise PreconditionError(
            f"version {clean} is the last one that never saw the file, but {home.adapter(clean)} does not exist. "
            "Restore it from a backup, or revoke without --retrain"
        )


def _print_lineage(found: Lineage) -> None:
    rows = [
        [use.run_id, use.state, use.file_id, use.role, use.outcome, use.tokens, when(use.claimed_at)]
        for use in found.uses
    ]
    if rows:
        print_table("runs", ["run", "state", "file", "role", "outcome", "tokens", "claimed at"], rows)
    else:
        out.print("no run used the file")
    for adapter in found.adapters:
        how = "was trained on it" if adapter.directly else f"descends from version {adapter.parent_version}"
        mark = " (current)" if adapter.is_current else " (withdrawn)" if adapter.is_withdrawn else ""
        out.print(f"version {adapter.version} {how}{mark}")
    if not found.adapters:
        out.print("no adapter saw the file")
    if found.revoked is not None:
        out.print(f"revoked: {escape(found.revoked)}")


def audit(
    books_only: Annotated[
        bool, typer.Option("--books-only", help="Check the database only, not the files of adapters and runs.")
    ] = False,
    recipe: RecipeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Prove that no row is lost or trained twice, and that published adapters are unchanged. Exit 1 on any problem.

    Every row must be ineligible, pending, claimed or settled. The sums must reconcile, and the adapters and their
    lineage must match what was published.
    """
    settings = settings_for(recipe)
    with database(settings) as pool:
        found = audit_table.audit(pool, settings.source, settings.eligibility, settings.recipe.stream)
        if not books_only:
            on_disk = disk_problems(Home(settings.home), pool, settings.recipe.stream)
            found = replace(found, problems=[*found.problems, *on_disk])
    if as_json:
        print_json(asdict(found))
    else:
        _print_audit(found)
    if found.problems:
        raise typer.Exit(1)


def _print_audit(found: audit_table.Audit) -> None:
    rows: list[list[Any]] = [["pending", found.pending], ["claimed by a live run", found.claimed]]
    rows += [[f"ineligible: {reason}", count] for reason, count in sorted(found.ineligible.items())]
    rows += [[f"settled: {name}", count] for name, count in sorted(found.settled.items())]
    print_table(f"{found.total} rows in the source", ["class", "rows"], [*rows, ["total", found.total]])
    if found.changed:
        out.print(f"{found.changed} settled rows have another text by now. They wait as a new version")
    if found.superseded:
        counts = ", ".join(f"{count} {name}" for name, count in found.superseded.items())
        out.print(f"earlier texts of rows: {counts}")
    out.print(
        f"{found.trained_rows} rows trained into {found.published_runs} published runs, {found.trained_tokens} tokens"
    )
    if found.replayed_rows:
        out.print(f"of these tokens, {found.replayed_tokens} are of rows trained again ({found.replayed_rows} times)")
    for problem in found.problems:
        out.print(f"PROBLEM: {escape(problem)}")
    out.print("no row lost, none trained twice" if not found.problems else f"{len(found.problems)} problems")
