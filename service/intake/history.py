"""Reads a git history as rows: one row for each changed file of each commit, with the previous text."""

from __future__ import annotations

import difflib
import io
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from db.files import NewFile
from service.errors import PreconditionError
from service.intake.fields import stored
from service.intake.formats import PassedOver, Skipped
from service.intake.git import environment, git, git_fields
from service.intake.names import refused_name
from service.intake.records import Given
from service.intake.source_texts import UNKNOWN, can_be_source, source_text

MAX_COMMITS = 1000
MAX_CHANGED_BYTES = 100_000
"""Maximum size of a file before and after its change. A diff's worst-case time is quadratic."""
PHASE = "commits"
REGULAR = frozenset({"000000", "100644", "100755", "100664"})
"""Modes of regular files and of no file. Other modes are links and submodules."""


def read_history(root: Path, given: Given, *, max_commits: int = MAX_COMMITS) -> Iterator[NewFile | PassedOver]:
    """Yield the changes of the newest commits below a folder, newest first. Skips merges and deleted files.

    Raises:
        PreconditionError: git could not read the whole history.
    """
    log = git_fields(
        root, "log", f"--max-count={max_commits}", "--no-merges", "--raw", "--no-abbrev", "-z", "--relative",
        "--no-renames", "--root", "--no-color", "--no-show-signature", "--encoding=UTF-8", "--format=%H%x00%an%x00%B",
    )  # fmt: skip
    edge = _shallow_edge(root)
    command = ["git", "-C", str(root), "cat-file", "--batch"]
    blobs = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment())
    try:
        for change in _changes(log):
            if change.sha in edge:  # its parent is missing, so git shows all files as new
                found: NewFile | Skipped = "commit at the edge of a shallow clone"
            else:
                found = _row(change, blobs, given, given.repository or root.name)
            named = f"{change.path} in {change.sha[:12]}"
            yield PassedOver(name=named, reason=found) if isinstance(found, str) else found
    finally:
        blobs.kill()
        blobs.communicate()


@dataclass(frozen=True, kw_only=True)
class _Change:
    """The change of one file by one commit."""

    sha: str
    author: str
    message: str
    facts: str
    """Modes, blobs before and after, and status letter, as in `git log --raw`."""
    path: str


def _changes(fields: Iterator[bytes]) -> Iterator[_Change]:
    """Parse git's fields: three per commit, then two per change. The first field of a change starts with a colon."""
    sha, author, message = "", "", ""
    for field in fields:
        text = field.decode("utf-8", "replace").strip("\n")
        if text.startswith(":"):
            path = stored(next(fields, b"").decode("utf-8", "surrogateescape"))
            yield _Change(sha=sha, author=author, message=message, facts=text, path=path)
        elif text:
            sha, author, message = text, *(next(fields, b"").decode("utf-8", "replace") for _ in range(2))


def _shallow_edge(root: Path) -> frozenset[str]:
    """Commits without parents in a shallow clone."""
    name = git(root, "rev-parse", "--git-path", "shallow")
    path = root / name if name else None
    return frozenset(path.read_text().split() if path is not None and path.is_file() else ())


def _row(change: _Change, blobs: subprocess.Popen[bytes], given: Given, repository: str) -> NewFile | Skipped:
    *modes, before_id, after_id, status = change.facts.removeprefix(":").split(" ")
    if status[0] == "D":
        return "deleted by its commit"
    if not all(mode in REGULAR for mode in modes):
        return "not a file"
    if (refused := refused_name(change.path)) is not None:
        return refused
    if not can_be_source(change.path):
        return UNKNOWN
    before, after = (_blob(blobs, name) for name in (before_id, after_id))
    if before is None or after is None:
        return f"over {MAX_CHANGED_BYTES:,} bytes"
    old = source_text(change.path, before) if before else ("", "")
    new = source_text(change.path, after)
    if isinstance(old, str) or isinstance(new, str):
        return new if isinstance(new, str) else str(old)
    spoken, text = new
    return NewFile(
        repository=stored(repository),
        path=change.path,
        language=spoken,
        content=text,
        quality_score=given.score_of(text),
        commit_sha=change.sha,
        phase=given.phase or PHASE,
        metadata={
            "message": change.message.strip(),
            "author": change.author,
            "before": old[1],
            "diff": _difference(old[1], text, change.path),
        },
    )


def _difference(old: str, new: str, path: str) -> str:
    """Return the diff in git's format, where only a newline ends a line."""
    lines = difflib.unified_diff(list(io.StringIO(old)), list(io.StringIO(new)), f"a/{path}", f"b/{path}")
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def _blob(blobs: subprocess.Popen[bytes], name: str) -> bytes | None:
    """Return a blob's bytes: empty without a blob, None if it is too large."""
    if not name.strip("0"):
        return b""
    assert blobs.stdin is not None and blobs.stdout is not None
    blobs.stdin.write(name.encode() + b"\n")
    blobs.stdin.flush()
    header = blobs.stdout.readline().split()
    if not header:
        raise PreconditionError("git ended while reading a file: see its message above")
    if len(header) < 3:  # missing: a partial clone
        return None
    size = int(header[2])
    content = blobs.stdout.read(size + 1)[:-1]
    return content if size <= MAX_CHANGED_BYTES else None
