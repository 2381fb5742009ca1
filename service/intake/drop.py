"""Inserts files, folders, git checkouts, JSONL, Parquet and datasets into code_files. Safe to repeat."""

from __future__ import annotations

import itertools
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from db.files import BatchResult, NewFile, insert_files
from db.pool import Pool
from service.errors import PreconditionError
from service.intake.fields import stored
from service.intake.formats import Skipped, format_of, is_array
from service.intake.git import git, git_fields, is_checkout, is_git_directory, is_git_layout, is_ignored
from service.intake.history import read_history
from service.intake.hub import SCHEME, read_dataset
from service.intake.languages import by_name, language
from service.intake.names import refused_name
from service.intake.records import Columns, Given, read_file
from service.logs import event as log

MAX_FILE_BYTES = 2_000_000
FIRST_BYTES = 4096
"""Bytes to read of a file whose name gives no language, to detect the language from its text."""
PROGRESS_EVERY = 200
SHARDS = (".jsonl", ".ndjson", ".parquet")
"""Formats of records that are read in a folder, too."""


@dataclass
class RecordFiles:
    """What was noticed in files of records."""

    barren: list[str] = field(default_factory=list)
    """Named files that gave no row, each with the reason and what to do."""
    barren_within: list[str] = field(default_factory=list)
    """The same for files in a folder. They may be somebody's data."""
    unknown: Counter[str] = field(default_factory=Counter)
    """Columns that nothing was read from, with the number of their files."""


@dataclass
class Summary:
    """The result of a drop."""

    inserted: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    records: RecordFiles = field(default_factory=lambda: RecordFiles())

    @property
    def barren(self) -> list[str]:
        """Files of records that should have given rows, each with the reason and what to do."""
        nothing = self.inserted == 0 and not self.skipped["already there"]
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
    on_progress: Callable[[Summary], None] = lambda summary: None,
) -> Summary:
    """Insert all rows of the sources, and skip rows that exist (same repository, path and text, or commit of a change).

    `history_commits` reads the changes of that many commits from a git checkout instead of its files. After an error,
    `summary` tells what was done before.
    """
    summary = Summary() if summary is None else summary

    def files() -> Iterator[NewFile]:
        read = read_sources(sources, given, history_commits=history_commits, token=token, records=summary.records)
        for seen, found in enumerate(read):
            if isinstance(found, Skipped):
                summary.skipped[found] += 1
            else:
                yield found
            if seen % PROGRESS_EVERY == 0:
                on_progress(summary)

    def on_batch(result: BatchResult) -> None:
        summary.inserted += result.inserted
        if result.already_there:
            summary.skipped["already there"] += result.already_there
        on_progress(summary)

    insert_files(pool, files(), on_batch)
    return summary


def read_sources(
    sources: Sequence[str],
    given: Given,
    *,
    history_commits: int = 0,
    token: str | None = None,
    records: RecordFiles | None = None,
) -> Iterator[NewFile | Skipped]:
    """Yield every file or row of the sources in a fixed order, or the reason why it is skipped.

    Args:
        records: filled with what is noticed in files of records
    """
    records = RecordFiles() if records is None else records
    for source in sources:
        path = Path(source)
        if source.startswith(SCHEME):
            yield from read_dataset(source.removeprefix(SCHEME).strip("/"), given, token)
        elif path.is_symlink():
            yield "symlink"
        elif path.is_dir():
            yield from _read_named_folder(path.resolve(), given, records, history_commits)
        elif not path.is_file():  # opening a pipe would block
            yield "not a file"
        elif _has_records(path, named=True):
            yield from _read_records(path, given, records)
        else:
            yield new_file(path, given, repository=given.repository or path.resolve().parent.name, name=path.name)


def _has_records(path: Path, *, named: bool) -> bool:
    """Whether to read a file as records. In a folder, JSON is a source file, and a table may be anybody's data."""
    found = format_of(path)
    if found is None or (not named and found not in SHARDS):
        return False
    return found != ".json" or path.suffix.lower() != ".json" or is_array(path)


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
) -> Iterator[NewFile | Skipped]:
    columns, rows, reasons = Columns(), 0, Counter[str]()
    for found in read_file(path, given, columns, name=name, repository=repository):
        rows += not isinstance(found, str)
        reasons[found if isinstance(found, str) else ""] += 1
        yield found
    if rows == 0:
        (records.barren if named else records.barren_within).append(_barren(path, columns, reasons))
    records.unknown.update(columns.unknown(given))


def _barren(path: Path, columns: Columns, reasons: Counter[str]) -> str:
    """Say why a file of records gave no row, and what to do."""
    if not reasons:
        return f"{path} has no record"
    why = ", ".join(f"{count} × {reason}" for reason, count in reasons.most_common(3))
    if not columns.seen:
        return f"{path} gave no row ({why})"
    return (
        f"{path} gave no row ({why}). Its columns are {', '.join(columns.seen)}. Name the one that has the text: "
        "--column content=NAME"
    )


def _read_named_folder(
    root: Path, given: Given, records: RecordFiles, history_commits: int
) -> Iterator[NewFile | Skipped]:
    """Yield the files or the history of a folder that the user named. What is named is taken, or has a reason."""
    if is_git_directory(root):
        if not history_commits:
            raise PreconditionError(
                f"{root} is a bare git repository, or in one: it has no checked-out files. Give --history for its "
                f"changes, or check it out: git clone {root} FOLDER"
            )
        name = root.name.removesuffix(".git") or root.parent.name  # as a checkout of it is called
        if git(root, "rev-parse", "--verify", "--quiet", "HEAD") is None:
            yield "bare git repository without a commit at HEAD"
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
        for _ in filter(None, git_fields(root, "ls-files", "-z", "--others", "--ignored", "--exclude-standard")):
            found = True
            yield "ignored by git (name the file itself to take it)"
    if not found:
        yield "folder has no commits with files" if history_commits else "folder has no files"


def _read_folder(
    root: Path, given: Given, records: RecordFiles, history_commits: int, *, checkout: bool
) -> Iterator[NewFile | Skipped]:
    commit = git(root, "rev-parse", "--verify", "--quiet", "HEAD") if checkout else None
    if history_commits:
        if commit is None:
            yield "folder has no git history"
        else:
            yield from read_history(root, given, max_commits=history_commits)
        return
    unreadable: list[OSError] = []
    for name in _tracked(root) if checkout else _walk(root, unreadable.append):
        within = root / name
        if os.path.lexists(within / ".git") and not within.is_symlink():  # a nested checkout with its own .gitignore
            yield from _read_folder(within, given, records, 0, checkout=is_checkout(within))
        elif is_git_layout(within):
            yield "bare git repository"
        elif _is_shard(within, name):
            repository = given.repository or root.name
            yield from _read_records(within, given, records, name=name, repository=repository, named=False)
        else:
            yield new_file(within, given, repository=given.repository or root.name, name=name, commit=commit)
    yield from (f"folder cannot be read ({error.strerror})" for error in unreadable)


def _tracked(root: Path) -> Iterator[str]:
    """Yield tracked files, then untracked files that .gitignore does not exclude. Each group is sorted."""
    for which in (["--cached"], ["--others", "--exclude-standard"]):
        names = (os.fsdecode(name).rstrip("/") for name in git_fields(root, "ls-files", "-z", *which))
        yield from (name for name, _ in itertools.groupby(names) if name and os.path.lexists(root / name))


def _walk(root: Path, on_error: Callable[[OSError], None]) -> Iterator[str]:
    """Yield the files below a folder, and folders that are nested checkouts or bare repositories."""
    for folder, folders, files in os.walk(root, onerror=on_error):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        inner = {name: Path(folder) / name for name in folders}
        checkouts = {name for name, path in inner.items() if os.path.lexists(path / ".git") or is_git_layout(path)}
        folders[:] = [name for name in folders if name not in checkouts]
        yield from ((Path(folder) / name).relative_to(root).as_posix() for name in sorted([*files, *checkouts]))


def new_file(path: Path, given: Given, *, repository: str, name: str, commit: str | None = None) -> NewFile | Skipped:
    """Return a file as a row, or the reason why it is skipped."""
    try:
        if path.is_symlink():
            return "symlink"
        if (refused := refused_name(name)) is not None:
            return refused
        if not path.is_file():
            return "not a file"
        if by_name(name) is None and not _may_be_script(path):
            return "not a known language"
        if path.stat().st_size > MAX_FILE_BYTES:
            return f"over {MAX_FILE_BYTES:,} bytes"
        content = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return "not UTF-8"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    spoken = language(name, content)
    if spoken is None:
        return "not a known language"
    if "\0" in content:
        return "not text"
    return NewFile(
        repository=stored(repository),
        path=stored(name),
        language=spoken,
        content=content,
        quality_score=given.score_of(content),
        commit_sha=commit,
        phase=given.phase,
    )


def _may_be_script(path: Path) -> bool:
    """Whether to look for a language in the text: only a file without an extension can be a script."""
    if path.suffix:
        return False
    with path.open("rb") as file:
        return language(path.name, file.read(FIRST_BYTES).decode("utf-8", "replace")) is not None
