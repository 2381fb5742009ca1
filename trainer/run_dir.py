"""The run directory, the only interface between service and trainer: paths, records and crash-safe writes.

Files for other processes are written under a temporary name, fsynced and renamed. A marker file comes last.
docs/run-directory.md describes all files.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Outcome = Literal["trained", "unused", "rejected", "held_out", "replayed"]
Failure = Literal["non_finite", "out_of_memory"]

MANIFEST = "MANIFEST.json"
CHUNK_BYTES = 1 << 20


class RunDirectoryError(Exception):
    """A run directory, checkpoint or adapter folder does not match its manifest."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One file of the source table at the time of the claim."""

    file_id: int
    repository: str | None
    path: str | None
    language: str
    content: str
    sha256: str
    """SHA-256 of the content's UTF-8 bytes."""
    fresh: bool = True
    """False for a held-out or replay row of an earlier run."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Further facts about the file: the source table's `metadata`."""


@dataclass(frozen=True, kw_only=True)
class RowOutcome:
    """Outcome of one row of this run. `trained` means: seen up to the step whose weights are the result."""

    file_id: int
    outcome: Outcome
    reason: str | None = None
    """Why the row was rejected, else None."""
    samples: int = 0
    tokens: int = 0
    """Tokens of the row that were trained up to the best step (held out: that were evaluated)."""


@dataclass(frozen=True, kw_only=True)
class Suspects:
    """Rows that may have made a run fail."""

    reason: Failure
    step: int
    file_ids: tuple[int, ...]
    """Ascending; at least one."""


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
    def manifest(self) -> Path:
        return self.root / MANIFEST

    @property
    def lock(self) -> Path:
        return self.root / "lock"

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
    def suspects(self) -> Path:
        return self.root / "suspects.json"

    @property
    def adapter(self) -> Path:
        return self.root / "adapter"

    @property
    def report(self) -> Path:
        return self.root / "report.json"


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


# --- JSON lines -----------------------------------------------------------------------------------------------


def json_line(record: Any) -> str:
    """Format a record as a JSON line. Lone surrogates stay escaped, because UTF-8 cannot encode them."""
    return json.dumps(record, ensure_ascii=True, allow_nan=False, separators=(",", ":")) + "\n"


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a JSON-lines file. A missing file has none.

    Raises:
        RunDirectoryError: a line is not a JSON object.
    """
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise RunDirectoryError(f"{path}, line {number}: not JSON ({error})") from error
            if not isinstance(record, dict):
                raise RunDirectoryError(f"{path}, line {number}: not a JSON object")
            yield record


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of rows.jsonl, held_out.jsonl or replay.jsonl."""
    for record in read_lines(path):
        try:
            yield Row(**record)
        except TypeError as error:
            raise RunDirectoryError(f"{path}: a row has the wrong fields ({error})") from error


def write_outcomes(path: Path, outcomes: Iterable[RowOutcome]) -> None:
    """Write rows_outcome.jsonl atomically."""
    write_text(path, "".join(json_line(asdict(outcome)) for outcome in outcomes))


def read_outcomes(path: Path) -> Iterator[RowOutcome]:
    """Yield the trainer's outcome of each row."""
    for record in read_lines(path):
        yield RowOutcome(**record)


def read_suspects(path: Path) -> Suspects | None:
    """Return the rows that may have made a run fail, or None.

    Raises:
        RunDirectoryError: the file cannot be read.
    """
    if not path.exists():
        return None
    try:
        record = read_json(path)
        return Suspects(reason=record["reason"], step=record["step"], file_ids=tuple(map(int, record["file_ids"])))
    except (ValueError, KeyError, TypeError) as error:
        raise RunDirectoryError(f"{path} cannot be read ({error})") from error


# --- events ---------------------------------------------------------------------------------------------------


def append_event(path: Path, event: str, /, **fields: Any) -> None:
    """Append one event. Non-finite numbers are written as strings, so that each line is valid JSON."""
    record = {"time": round(time.time(), 3), "event": event} | {
        key: str(value) if isinstance(value, float) and value - value != 0 else value for key, value in fields.items()
    }
    with path.open("a", encoding="utf-8") as file:
        file.write(json_line(record))


@dataclass
class EventTail:
    """Reads events.jsonl as it grows. `new()` returns the events since the last call."""

    path: Path
    offset: int = 0

    def new(self) -> list[dict[str, Any]]:
        """Return the events since the last call. Skips incomplete and damaged lines."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self.offset += len(whole)
        events = []
        for line in whole.splitlines():
            try:
                record = json.loads(line)
            except ValueError:  # a crash can leave half a line, to which the next start appends
                continue
            if isinstance(record, dict) and "event" in record:
                events.append(record)
        return events


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
def held_lock(path: Path, *, wait_seconds: float) -> Iterator[None]:
    """Hold an exclusive `flock` on `path`. The kernel releases it when the process ends for any reason.

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
        yield
