"""Reads rows with their own metadata from JSONL and Parquet, in parts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from db.files import NewFile
from service.intake.languages import language
from service.intake.quality import quality_score

Skipped = str
"""Why a file or row was skipped."""

LARGEST_SCORE = 3e38
"""The database stores scores in single precision."""
FACTS = ("repository", "path", "language", "license", "commit_sha", "phase")
TEXTS = ("content", "training_content", "prompt", "completion")
COLUMNS = (*TEXTS, *FACTS, "quality_score", "metadata")
PARQUET_ROWS = 256
NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
"""An escaped NUL character in JSON. After an odd number of backslashes it is plain text."""


@dataclass(frozen=True, kw_only=True)
class Given:
    """Defaults and overrides given on the command line."""

    score: float | None = None
    """None: use the record's own score, else the heuristic (service/intake/quality.py)."""
    repository: str | None = None
    """For rows without a repository. None: use the name of the folder or file."""
    phase: str | None = None

    def score_of(self, content: str) -> float:
        return quality_score(content) if self.score is None else self.score


def read_jsonl(path: Path, given: Given) -> Iterator[NewFile | Skipped]:
    """Yield one row per line, without blank lines."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _from_line(line, Path(path.name), number, given)
    except OSError as error:
        yield f"cannot be read ({error.strerror})"


def _from_line(line: bytes, path: Path, number: int, given: Given) -> NewFile | Skipped:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    return from_record(record, path, number, given) if isinstance(record, dict) else "line is not a JSON object"


def read_parquet(
    path: Path, given: Given, *, name: str | None = None, repository: str | None = None
) -> Iterator[NewFile | Skipped]:
    """Yield the rows of a Parquet file, reading a few hundred at a time.

    `name` and `repository` are used for rows without path or repository. The default is the file's name.
    """
    try:
        with parquet.ParquetFile(path) as file:
            columns = [column for column in COLUMNS if column in file.schema_arrow.names]
            batches = file.iter_batches(batch_size=PARQUET_ROWS, columns=columns)
            rows = (batch.slice(place, 1) for batch in batches for place in range(batch.num_rows))
            for number, row in enumerate(rows, 1):
                record = _plain_record(row)
                if isinstance(record, dict):
                    yield from_record(record, Path(name or path.name), number, given, repository)
                else:
                    yield record
    except (pyarrow.ArrowException, OSError) as error:
        yield f"cannot be read as Parquet ({' '.join(str(error).split())[:80]})"


def _plain_record(row: pyarrow.RecordBatch) -> dict[str, Any] | Skipped:
    """Convert a Parquet row to a dict. Its strings can be invalid UTF-8, and its times out of range."""
    try:
        (record,) = row.to_pylist()
    except UnicodeDecodeError:
        return "not UTF-8"
    except (ValueError, OverflowError):
        return "row has a value out of range"
    return dict(record)


def from_record(
    record: Mapping[str, Any], path: Path, number: int, given: Given, otherwise: str | None = None
) -> NewFile | Skipped:
    """Return a record as a row, or why it is skipped.

    `path` and `number` form the path of a record without one. `otherwise` is its default repository.
    """
    content, metadata = _content(record)
    if content is None:
        return "row has no `content`"
    facts = [record.get(name) or "" for name in FACTS]
    if not all(is_storable(text) for text in (content, *facts)):
        return "not text"
    own_score = record.get("quality_score")
    if isinstance(own_score, int | float) and not abs(own_score) <= LARGEST_SCORE:
        return "quality_score out of range"
    if metadata is None:
        return "metadata cannot be stored"
    repository, own_path, own_language, licence, commit, phase = facts
    known = isinstance(own_score, int | float) and not isinstance(own_score, bool)
    return NewFile(
        repository=repository or given.repository or otherwise or stored(path.stem),
        path=own_path or stored(f"{path}:{number}"),
        language=(own_language or language(own_path, content) or "text").lower(),
        content=content,
        quality_score=float(own_score) if known else given.score_of(content),  # type: ignore[arg-type]
        license=licence or None,
        commit_sha=commit or None,
        phase=given.phase or phase or None,
        metadata=metadata,
    )


def _content(record: Mapping[str, Any]) -> tuple[Any, dict[str, Any] | None]:
    """Return a record's text and metadata with prompt and completion. Metadata is None if Postgres cannot store it."""
    given = record.get("metadata")
    metadata = dict(given) if isinstance(given, Mapping) else {}
    content = next((record[name] for name in ("content", "training_content") if record.get(name) is not None), None)
    prompt, completion = record.get("prompt"), record.get("completion")
    if content is None and isinstance(prompt, str) and isinstance(completion, str):
        content = prompt + ("" if prompt.endswith("\n") or completion.startswith("\n") else "\n") + completion
        metadata |= {"prompt": prompt, "completion": completion}
    try:
        metadata = json.loads(json.dumps(metadata, allow_nan=False, default=_plain))
        good = is_storable(NUL.sub("\0", json.dumps(metadata, ensure_ascii=False)))
    except (TypeError, ValueError, RecursionError):
        good = False
    return content, metadata if good else None


def _plain(value: Any) -> str:
    """Convert Parquet types that JSON lacks."""
    if isinstance(value, datetime | date):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} cannot be converted to JSON")


def stored(name: str) -> str:
    """Return a file name as text. Bytes that are not UTF-8 become question marks."""
    return name.encode("utf-8", "replace").decode()


def is_storable(text: object) -> bool:
    """Whether Postgres can store it as text: no NUL characters, no lone surrogates."""
    if not isinstance(text, str) or "\0" in text:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
