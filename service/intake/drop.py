"""Inserts files, folders, git checkouts, JSONL, Parquet and datasets into code_files. Safe to repeat."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from db.files import BatchResult, NewFile, insert_files
from db.pool import Pool
from service import progress
from service.errors import PreconditionError
from service.intake.fields import stored
from service.intake.folders import files_of, new_file
from service.intake.formats import FORMATS, LABELS, PassedOver, Skipped, format_of
from service.intake.git import git, git_fields, is_checkout, is_git_directory, is_git_layout, is_ignored
from service.intake.history import read_history
from service.intake.hub import SCHEME, read_dataset
from service.intake.names import refused_name
from service.intake.reading import Item, Unread, read_in_order
from service.intake.records import NO_TEXT, NOT_TEXT, Columns, Given, read_file
from service.logs import event as log

PROGRESS_EVERY = 200
READING = "reading files"
ALREADY_THERE = "already there"
SHARDS = (".jsonl", ".ndjson", ".parquet")
"""Formats of records that are read in a folder, too."""
Found = NewFile | PassedOver


@dataclass
class RecordFiles:
    """What was noticed in files of records."""

    barren: list[str] = field(default_factory=list)
    """Named files that gave no row, each with the reason and what to do."""
    barren_within: list[str] = field(default_factory=list)
    """The same for files in a folder. They may be somebody's data."""
    unknown: Counter[str] = field(default_factory=Counter)
    """Columns that nothing was read from, with the number of their files."""
    reading: str | None = None
    """The format of the file of records that is being read. None: no such file is."""


@dataclass
class Summary:
    """The result of a drop."""

    inserted: int = 0
    would_insert: int = 0
    """Rows that a dry run found."""
    skipped: Counter[str] = field(default_factory=Counter)
    records: RecordFiles = field(default_factory=lambda: RecordFiles())
    passed_over: list[PassedOver] | None = None
    """Each file that was skipped, with the reason. None: only their numbers are kept."""

    def skip(self, found: PassedOver) -> None:
        """Count a file that is passed over, and keep its name if names are wanted."""
        self.skipped[found.reason] += 1
        if self.passed_over is not None:
            self.passed_over.append(found)

    @property
    def barren(self) -> list[str]:
        """Files of records that should have given rows, each with the reason and what to do."""
        nothing = self.inserted + self.would_insert == 0 and not self.skipped[ALREADY_THERE]
        return [*self.records.barren, *(self.records.barren_within if nothing else [])]

    @property
    def seen(self) -> int:
        return self.inserted + self.skipped.total()


def drop_paths(
    pool: Pool,
    sources: Sequence[str],
    given: Given,
    summary: Summary | None = None,
    *,
    history_commits: int = 0,
    token: str | None = None,
    jobs: int = 1,
) -> Summary:
    """Insert all rows of the sources, and skip rows that exist (same repository, path and text, or commit of a change).

    `history_commits` reads the changes of that many commits from a git checkout instead of its files. With many files,
    `jobs` processes read those of folders. After an error,
    `summary` tells what was done before.
    """
    summary = Summary() if summary is None else summary
    began = time.monotonic()

    def tell() -> None:
        seconds = time.monotonic() - began
        rate = f", {summary.seen / seconds:,.0f} a second" if seconds > 1 else ""
        said = f"{summary.inserted:,} rows inserted, {summary.skipped.total():,} skipped{rate}"
        progress.report(READING, said, summary.seen)

    def files() -> Iterator[NewFile]:
        read = read_sources(
            sources, given, history_commits=history_commits, token=token, records=summary.records, jobs=jobs
        )
        for seen, found in enumerate(read):
            if isinstance(found, PassedOver):
                summary.skip(found)
            else:
                yield found
            if seen % PROGRESS_EVERY == 0:
                tell()

    def on_batch(result: BatchResult) -> None:
        summary.inserted += result.inserted
        for path in result.already_there:
            summary.skip(PassedOver(name=path, reason=ALREADY_THERE))
        tell()

    try:
        insert_files(pool, files(), on_batch)
    finally:
        progress.ended(READING)
    return summary


def read_sources(
    sources: Sequence[str],
    given: Given,
    *,
    history_commits: int = 0,
    token: str | None = None,
    records: RecordFiles | None = None,
    jobs: int = 1,
) -> Iterator[Found]:
    """Yield every file or row of the sources in a fixed order, or the reason why it is skipped.

    Args:
        records: filled with what is noticed in files of records
        jobs: how many processes read the files of folders, if there are many
    """
    records = RecordFiles() if records is None else records
    return read_in_order(_items(sources, given, records, history_commits, token), jobs)


def _items(
    sources: Sequence[str], given: Given, records: RecordFiles, history_commits: int, token: str | None
) -> Iterator[Item]:
    for source in sources:
        path = Path(source)
        if source.startswith(SCHEME):
            records.reading = LABELS[".parquet"]
            for number, found in enumerate(read_dataset(source.removeprefix(SCHEME).strip("/"), given, token), 1):
                yield _named(f"{source}:{number}", found)
            records.reading = None
        elif path.is_symlink():
            yield PassedOver(name=source, reason="symlink")
        elif path.is_dir():
            yield from _read_named_folder(path.resolve(), given, records, history_commits)
        elif not path.is_file():  # opening a pipe would block
            yield PassedOver(name=source, reason="not a file")
        elif _has_records(path, named=True):
            yield from _read_records(path, given, records)
        else:
            repository = given.repository or path.resolve().parent.name
            yield _named(source, new_file(path, given, repository=repository, name=path.name))


def _has_records(path: Path, *, named: bool) -> bool:
    """Whether to read a file as records. In a folder, JSON is a source file, and a table may be anybody's data."""
    found = format_of(path)
    return found in (FORMATS if named else SHARDS)


def _is_shard(path: Path, name: str) -> bool:
    """Whether to read a file of a folder as records."""
    return _has_records(path, named=False) and path.is_file() and not path.is_symlink() and refused_name(name) is None


def _read_records(
    path: Path,
    given: Given,
    records: RecordFiles,
    *,
    name: str | None = None,
    repository: str | None = None,
    named: bool = True,
) -> Iterator[Found]:
    columns, rows, reasons = Columns(), 0, Counter[str]()
    records.reading = LABELS.get(format_of(path) or "", "JSON lines")
    for number, found in enumerate(read_file(path, given, columns, name=name, repository=repository), 1):
        rows += not isinstance(found, str)
        reasons[found if isinstance(found, str) else ""] += 1
        yield _named(f"{name or path}:{number}", found)
    records.reading = None
    if rows == 0:
        (records.barren if named else records.barren_within).append(_barren(path, columns, reasons))
    records.unknown.update(columns.unknown(given))


def _barren(path: Path, columns: Columns, reasons: Counter[str]) -> str:
    """Say why a file of records gave no row, and what to do."""
    if not reasons:
        return f"{path} has no record"
    why = ", ".join(f"{count} × {reason}" for reason, count in reasons.most_common(3))
    if not columns.seen or not reasons.keys() & {NO_TEXT, NOT_TEXT}:
        return f"{path} gave no row ({why})"
    return (
        f"{path} gave no row ({why}). Its columns are {', '.join(columns.seen)}. Name the one that has the text: "
        "--column content=NAME"
    )


def _read_named_folder(root: Path, given: Given, records: RecordFiles, history_commits: int) -> Iterator[Item]:
    """Yield the files or the history of a folder that the user named. What is named is taken, or has a reason."""
    if is_git_directory(root):
        if not history_commits:
            raise PreconditionError(
                f"{root} is a bare git repository, or in one: it has no checked-out files. Give --history for its "
                f"changes, or check it out: git clone {root} FOLDER"
            )
        name = root.name.removesuffix(".git") or root.parent.name  # as a checkout of it is called
        if git(root, "rev-parse", "--verify", "--quiet", "HEAD") is None:
            yield PassedOver(name=str(root), reason="bare git repository without a commit at HEAD")
        else:
            given = replace(given, repository=given.repository or name)
            yield from read_history(root, given, max_commits=history_commits)
        return
    checkout = is_checkout(root)
    if checkout and not history_commits and is_ignored(root):
        log(f"{root} is ignored by git. It is read because it was named", level=logging.WARNING)
        checkout = False
    found = False
    for item in _read_folder(root, given, records, history_commits, checkout=checkout):
        found = True
        yield item
    if found:
        return
    if checkout and not history_commits:
        for ignored in filter(None, git_fields(root, "ls-files", "-z", "--others", "--ignored", "--exclude-standard")):
            found = True
            reason = "ignored by git (name the file itself to take it)"
            yield PassedOver(name=stored(os.fsdecode(ignored)), reason=reason)
    if not found:
        reason = "folder has no commits with files" if history_commits else "folder has no files"
        yield PassedOver(name=stored(str(root)), reason=reason)


def _read_folder(
    root: Path, given: Given, records: RecordFiles, history_commits: int, *, checkout: bool
) -> Iterator[Item]:
    commit = git(root, "rev-parse", "--verify", "--quiet", "HEAD") if checkout else None
    if history_commits:
        if commit is None:
            yield PassedOver(name=str(root), reason="folder has no git history")
        else:
            yield from read_history(root, given, max_commits=history_commits)
        return
    unreadable: list[OSError] = []
    repository = given.repository or root.name
    for name in files_of(root, unreadable.append, is_checkout=checkout, given=given):
        if isinstance(name, PassedOver):
            yield name
            continue
        within = root / name
        if os.path.lexists(within / ".git") and not within.is_symlink():  # a nested checkout with its own .gitignore
            yield from _read_folder(within, given, records, 0, checkout=is_checkout(within))
        elif is_git_layout(within):
            yield PassedOver(name=name, reason="bare git repository")
        elif _is_shard(within, name):
            yield from _read_records(within, given, records, name=name, repository=repository, named=False)
        else:
            yield Unread(path=within, given=given, repository=repository, name=name, commit=commit)
    for error in unreadable:
        yield PassedOver(name=stored(str(error.filename)), reason=f"folder cannot be read ({error.strerror})")


def _named(name: str, found: NewFile | Skipped) -> Found:
    return PassedOver(name=stored(name), reason=found) if isinstance(found, str) else found
