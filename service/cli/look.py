"""Says what `drop` takes and what it passes over: before it does (`--dry-run`), and afterwards."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from db.files import NewFile
from service.cli.console import out, print_table
from service.intake.drop import RecordFiles, Summary, read_sources
from service.intake.formats import PassedOver
from service.intake.records import Given
from service.intake.source_texts import is_notebook
from service.visible import visible
from trainer.conversations import MESSAGES


@dataclass(frozen=True, kw_only=True)
class Taken:
    """A file or record that would become a row."""

    path: str
    language: str
    format: str
    """`file`, `notebook`, `change`, `conversation`, or the format of its records."""


@dataclass(kw_only=True)
class Look:
    """What a drop would do."""

    summary: Summary
    kinds: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Number of rows by language and format."""
    taken: list[Taken] | None = None
    """Each row. None: only their numbers are kept."""

    def as_json(self) -> dict[str, Any]:
        """Return it for `--json`."""
        languages: Counter[str] = Counter()
        formats: Counter[str] = Counter()
        for (language, format), count in self.kinds.items():
            languages[language] += count
            formats[format] += count
        files = {} if self.taken is None else {"files": [vars(one) for one in self.taken]}
        return {
            "dry_run": True,
            "would_insert": self.kinds.total(),
            "languages": dict(languages.most_common()),
            "formats": dict(formats.most_common()),
            **files,
            **passed_over_json(self.summary),
        }


def look(sources: Sequence[str], given: Given, history_commits: int, token: str | None, *, names: bool) -> Look:
    """Read the sources as `drop` does, without a database.

    Args:
        names: keep the name of each file
    """
    found = Look(summary=Summary(passed_over=[] if names else None), taken=[] if names else None)
    records = found.summary.records
    for one in read_sources(sources, given, history_commits=history_commits, token=token, records=records):
        if isinstance(one, PassedOver):
            found.summary.skip(one)
            continue
        taken = Taken(path=one.path or "", language=one.language or "text", format=_format(one, records))
        found.kinds[taken.language, taken.format] += 1
        found.summary.would_insert += 1
        if found.taken is not None:
            found.taken.append(taken)
    return found


def _format(file: NewFile, records: RecordFiles) -> str:
    if "diff" in file.metadata:
        return "change"
    if MESSAGES in file.metadata:
        return "conversation"
    return records.reading or ("notebook" if is_notebook(file.path or "") else "file")


def print_look(found: Look) -> None:
    """Print what a drop would take and pass over."""
    out.print(f"{found.kinds.total()} rows would be inserted, {found.summary.skipped.total()} files passed over")
    if found.kinds:
        rows = [[language, format, count] for (language, format), count in found.kinds.most_common()]
        print_table("would be inserted", ["language", "format", "rows"], rows)
    for one in found.taken or ():
        print(f"{one.language}, {one.format}: {_shown(one.path)}")
    print_passed_over(found.summary)


def print_passed_over(summary: Summary) -> None:
    """Print what was passed over: by reason, and each by name if names were kept."""
    if summary.skipped:
        print_table("skipped", ["reason", "files"], [[why, count] for why, count in summary.skipped.most_common()])
    for one in summary.passed_over or ():
        print(f"{one.reason}: {_shown(one.name)}")
    if summary.records.unknown:
        out.print(f"columns not used: {', '.join(summary.records.unknown)}")
    for line in summary.barren:
        print(visible(line), file=sys.stderr)


def passed_over_json(summary: Summary) -> dict[str, Any]:
    """Return what was passed over for `--json`."""
    names = summary.passed_over
    files = {} if names is None else {"passed_over_files": [{"path": one.name, "reason": one.reason} for one in names]}
    return {
        "passed_over": summary.skipped,
        **files,
        "columns_not_used": summary.records.unknown,
        "files_without_rows": summary.barren,
    }


def _shown(name: str) -> str:
    """Return a name on one line."""
    return name if name.isprintable() else repr(name)
