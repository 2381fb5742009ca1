"""The changes of a git history as rows: a row for each changed file of each commit, with what was there before."""

from __future__ import annotations

import difflib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from db.files import NewFile
from service.intake.languages import by_name
from service.intake.records import Given, Skipped, is_storable, stored

MAX_COMMITS = 1000
MAX_CHANGED_BYTES = 100_000
"""Of a file before or after its change: a diff takes the square of its length at worst."""
PHASE = "commits"
_RECORD, _FIELD = "\x1e", "\x1f"


def read_history(root: Path, given: Given, *, max_commits: int = MAX_COMMITS) -> Iterator[NewFile | Skipped]:
    """Changes of the newest commits, merges left out, newest first. Deleted files are passed over."""
    command = [
        "git", "-C", str(root), "log", f"--max-count={max_commits}", "--no-merges", "--raw", "--no-abbrev",
        "--no-renames", "--root", f"--format={_RECORD}%H{_FIELD}%an{_FIELD}%B{_FIELD}",
    ]  # fmt: skip
    blobs = subprocess.Popen(
        ["git", "-C", str(root), "cat-file", "--batch"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    log = subprocess.Popen(["git", "-c", "core.quotePath=false", *command[1:]], stdout=subprocess.PIPE)
    assert log.stdout is not None
    try:
        for record in (found.decode("utf-8", "replace") for found in records(log.stdout, _RECORD.encode())):
            sha, author, message, changes = record.split(_FIELD, 3)
            for change in changes.strip("\n").split("\n"):
                if change.startswith(":"):
                    about = {"message": message.strip(), "author": author}
                    yield _row(change, sha, about, blobs, given, given.repository or root.name)
    finally:
        for process in (log, blobs):
            process.kill()
            process.communicate()


def records(output: IO[bytes], separator: bytes) -> Iterator[bytes]:
    """What stands between two separators, as it comes; nothing for two in a row."""
    held = b""
    while chunk := output.read(1 << 16):
        *whole, held = (held + chunk).split(separator)
        yield from (record for record in whole if record)
    if held:
        yield held


def _row(
    change: str, sha: str, about: dict[str, str], blobs: subprocess.Popen[bytes], given: Given, repository: str
) -> NewFile | Skipped:
    facts, _, path = change.partition("\t")
    _, mode, before_id, after_id, status = facts.split(" ")
    language = by_name(path)
    if status[0] == "D":
        return "deleted by its commit"
    if language is None or mode in ("120000", "160000") or any(part.startswith(".") for part in Path(path).parts):
        return "not a known language"
    before, after = (_blob(blobs, name) for name in (before_id, after_id))
    if before is None or after is None:
        return f"over {MAX_CHANGED_BYTES:,} bytes"
    try:
        old, new = before.decode(), after.decode()
    except UnicodeDecodeError:
        return "not UTF-8"
    if not all(is_storable(text) for text in (old, new, about["message"], path)):
        return "not text"
    diff = "".join(difflib.unified_diff(old.splitlines(True), new.splitlines(True), f"a/{path}", f"b/{path}"))
    return NewFile(
        repository=stored(repository),
        path=path,
        language=language,
        content=new,
        quality_score=given.score_of(new),
        commit_sha=sha,
        phase=given.phase or PHASE,
        metadata={**about, "before": old, "diff": diff},
    )


def _blob(blobs: subprocess.Popen[bytes], name: str) -> bytes | None:
    """A blob's bytes, empty where there is none; None where it is too large."""
    if not name.strip("0"):
        return b""
    assert blobs.stdin is not None and blobs.stdout is not None
    blobs.stdin.write(name.encode() + b"\n")
    blobs.stdin.flush()
    header = blobs.stdout.readline().split()
    if len(header) < 3:  # missing: a shallow or partial clone
        return None
    size = int(header[2])
    content = blobs.stdout.read(size + 1)[:-1]
    return content if size <= MAX_CHANGED_BYTES else None
