"""The run directory, the one seam between service and trainer: its paths, and writes that survive a crash.

A file that another process reads is written under a temporary name, fsynced and renamed. A marker comes last.
docs/run-directory.md has the schema of every file; trainer/records.py has the records in them.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MANIFEST = "MANIFEST.json"
CHUNK_BYTES = 1 << 20


class RunDirectoryError(Exception):
    """A run directory, checkpoint or adapter folder does not match its manifest."""


@dataclass(frozen=True)
class RunDirectory:
    """Paths of one run's files."""

    root: Path

    @property
    def recipe(self) -> Path:
        return self.root / "recipe.yaml"

    @property
    def rows(self) -> Path:
        return self.root / "rows.jsonl"

    @property
    def held_out(self) -> Path:
        return self.root / "held_out.jsonl"

    @property
    def replay(self) -> Path:
        return self.root / "replay.jsonl"

    @property
    def parent(self) -> Path:
        return self.root / "parent"

    @property
    def current(self) -> Path:
        return self.root / "current"

    @property
    def examination(self) -> Path:
        return self.root / "examination.json"

    @property
    def answers(self) -> Path:
        return self.root / "answers.json"

    @property
    def suites(self) -> Path:
        return self.root / "suites"

    @property
    def manifest(self) -> Path:
        return self.root / MANIFEST

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def machines(self) -> Path:
        """Names the machines of a cluster on which processes of this run may be."""
        return self.root / "cluster.json"

    @property
    def events(self) -> Path:
        return self.root / "events.jsonl"

    @property
    def log(self) -> Path:
        return self.root / "trainer.log"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def dataset_stats(self) -> Path:
        return self.root / "dataset_stats.json"

    @property
    def rows_outcome(self) -> Path:
        return self.root / "rows_outcome.jsonl"

    @property
    def evaluation(self) -> Path:
        return self.root / "evaluation.jsonl"

    @property
    def suspects(self) -> Path:
        return self.root / "suspects.json"

    @property
    def adapter(self) -> Path:
        return self.root / "adapter"

    @property
    def report(self) -> Path:
        return self.root / "report.json"

    @property
    def verdict(self) -> Path:
        return self.root / "verdict.json"

    @property
    def verdict_sent(self) -> Path:
        return self.root / "verdict_sent.json"


# --- durable writes -------------------------------------------------------------------------------------------


def fsync_folder(folder: Path) -> None:
    """Make renames inside a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(path: Path) -> None:
    """Make a file's bytes durable."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    """Replace a file atomically: temporary name, fsync, rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    fsync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file atomically. NaN and infinity are errors, because JSON lacks them."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file that `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Fill a folder under a temporary name, and rename it when it is complete.

    Replaces an existing folder, which can only be the leftover of an interrupted attempt.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file() and not file.is_symlink():
                fsync_file(file)
        fsync_folder(temporary)
        if path.exists():
            shutil.rmtree(path)
        temporary.rename(path)
        fsync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


# --- manifests ------------------------------------------------------------------------------------------------


def sha256_file(path: Path, on_chunk: Callable[[], None] = lambda: None) -> str:
    """Return the sha256 of a file in hex. Calls `on_chunk` after each chunk."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            on_chunk()
    return digest.hexdigest()


def content_sha256(text: str) -> str:
    """Return the sha256 of a text's UTF-8 bytes in hex."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def write_manifest(folder: Path, on_chunk: Callable[[], None] = lambda: None, **facts: Any) -> str:
    """Write MANIFEST.json with the sha256 of all other files below `folder`. Returns the manifest's sha256."""
    files = {
        str(path.relative_to(folder)): sha256_file(path, on_chunk)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink() and path.name != MANIFEST
    }
    write_json(folder / MANIFEST, {"files": files, **facts})
    return sha256_file(folder / MANIFEST)


def verify_manifest(folder: Path, on_chunk: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Check all files listed in a folder's MANIFEST.json. Returns the manifest. Calls `on_chunk` after each chunk,
    because large files take a while.

    Raises:
        RunDirectoryError: the manifest or a file is missing, or a sha256 differs. Names all of them.
    """
    try:
        manifest: dict[str, Any] = read_json(folder / MANIFEST)
        files: dict[str, str] = manifest["files"]
        if not isinstance(files, dict):
            raise TypeError(f"its entry `files` is a {type(files).__name__}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunDirectoryError(f"{folder} has no readable {MANIFEST} ({error})") from error
    problems = []
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif sha256_file(path, on_chunk) != expected:
            problems.append(f"{name} has changed")
    if problems:
        raise RunDirectoryError(f"{folder} does not match its {MANIFEST}: {'; '.join(problems)}")
    return manifest


# --- the lock -------------------------------------------------------------------------------------------------


@contextmanager
def held_lock(path: Path, *, wait_seconds: float) -> Iterator[int]:
    """Hold an exclusive `flock` on `path`. The kernel releases it when the process ends for any reason.

    Yields its descriptor: a process that inherits it holds the lock, too.

    Raises:
        RunDirectoryError: another process still holds it after `wait_seconds`.
    """
    deadline = time.monotonic() + wait_seconds
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise RunDirectoryError(
                        f"{path} is held by another process (waited {wait_seconds:.0f} s)"
                    ) from None
                time.sleep(0.1)
        yield file.fileno()
