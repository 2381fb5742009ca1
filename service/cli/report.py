"""The command report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from service.cli.console import JsonOption, RecipeOption, out, print_json, settings_for
from service.errors import PreconditionError, UsageError
from service.report import html_page, markdown_page
from service.report.blocks import Document
from service.report.content import document
from service.report.gather import Known, gather
from trainer.run_dir import write_text

FORMATS: dict[str, tuple[Callable[[Document], str], str]] = {
    "html": (html_page.html, html_page.MARK),
    "md": (markdown_page.markdown, markdown_page.MARK),
}
"""By name, which is also the file's suffix: what writes a format, and how one of its files is known."""
TEXTS = 20
"""Held-out rows whose texts --with-texts includes."""
MARK_BYTES = 2000


def report(
    run: Annotated[
        str, typer.Argument(help="A run's number, a run directory, or the folder of a training (its last run).")
    ],
    to: Annotated[
        Path | None, typer.Option("--to", help="File to write. Default: report-000042.html and .md in this folder.")
    ] = None,
    format: Annotated[str | None, typer.Option("--format", help="html or md. Default: both, or as --to ends.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is not a report.")] = False,
    with_texts: Annotated[
        bool, typer.Option("--with-texts", help=f"Include the texts of up to {TEXTS} held-out rows.")
    ] = False,
    recipe: RecipeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a run's report: plots, samples, the gate's rules, lineage. One HTML file, and Markdown."""
    if format is not None and format not in FORMATS:
        raise UsageError(f"--format {format!r} is not one of {', '.join(FORMATS)}")
    if to is not None and to.is_dir():
        raise UsageError(f"--to: {to} is a folder. Name a file")
    formats = _formats(to, format)
    known = gather(settings_for(recipe), run, texts=TEXTS if with_texts else 0)
    targets = {name: to or Path(_usual_name(known, name)) for name in formats}
    for name, path in targets.items():
        _check_target(path, FORMATS[name][1], force=force)
    found = document(known)
    for name, path in targets.items():
        write_text(path, FORMATS[name][0](found))
    if as_json:
        print_json({"run": known.run_id, "files": list(targets.values()), "missing": found.missing})
        return
    for said in found.missing:
        out.print(f"not shown: {said}", markup=False)
    for path in targets.values():
        out.print(f"report: {path}", markup=False)


def _formats(to: Path | None, format: str | None) -> list[str]:
    if format is not None:
        return [format]
    if to is None:
        return list(FORMATS)
    suffix = {".htm": "html"}.get(to.suffix.lower(), to.suffix.lower().removeprefix("."))
    if suffix not in FORMATS:
        raise UsageError(f"--to {to}: the name must end in .html or .md. Or say it with --format")
    return [suffix]


def _usual_name(known: Known, suffix: str) -> str:
    return f"report-{known.run_id:06d}.{suffix}" if isinstance(known.run_id, int) else f"report.{suffix}"


def _check_target(path: Path, mark: str, *, force: bool) -> None:
    """Refuse to replace a file that no earlier report is.

    Raises:
        UsageError: it is another file, or a folder.
        PreconditionError: its folder does not exist.
    """
    if not path.absolute().parent.is_dir():
        raise PreconditionError(f"the folder {path.absolute().parent} does not exist. Make it, or choose another --to")
    if force or not path.exists():
        return
    with path.open("rb") as file:
        is_report = mark.encode() in file.read(MARK_BYTES)
    if not is_report:
        raise UsageError(
            f"{path} exists and is not a report. Choose another file with --to, or replace it with --force"
        )
