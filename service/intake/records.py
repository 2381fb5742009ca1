"""Records that bring their own facts: lines of JSONL, rows of Parquet. Read a part at a time."""

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
"""Why a file or row was passed over."""

LARGEST_SCORE = 3e38
"""Scores are stored in single precision."""
FACTS = ("repository", "path", "language", "license", "commit_sha", "phase")
TEXTS = ("content", "training_content", "prompt", "completion")
COLUMNS = (*TEXTS, *FACTS, "quality_score", "metadata")
PARQUET_ROWS = 256
NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
"""A NUL character in JSON; after an even number of backslashes, else it is text about one."""


@dataclass(frozen=True, kw_only=True)
class Given:
    """What the one who drops says of everything."""

    score: float | None = None
    """None: a record's own score, else the heuristic one (service/intake/quality.py)."""
    repository: str | None = None
    """Of what has none of its own; None: the folder's or file's name."""
    phase: str | None = None

    def score_of(self, content: str) -> float:
        return quality_score(content) if self.score is None else self.score


def read_jsonl(path: Path, given: Given) -> Iterator[NewFile | Skipped]:
    """One row a line; blank lines are none."""
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
    return from_record(record, path, number, given) if isinstance(record, dict) else "line that is no JSON object"


def read_parquet(
    path: Path, given: Given, *, name: str | None = None, repository: str | None = None
) -> Iterator[NewFile | Skipped]:
    """One row a row, a few hundred at a time. `name` and `repository` are for rows without a path or repository of
    their own, else the file's name."""
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
    """A row of Parquet; its strings may be any bytes, and its times any number."""
    try:
        (record,) = row.to_pylist()
    except UnicodeDecodeError:
        return "not UTF-8"
    except (ValueError, OverflowError):
        return "row with a value that is out of range"
    return dict(record)


def from_record(
    record: Mapping[str, Any], path: Path, number: int, given: Given, otherwise: str | None = None
) -> NewFile | Skipped:
    """A record as a row, or why it is passed over. `path` and `number` name what has no name of its own, `otherwise`
    what has no repository."""
    content, metadata = _content(record)
    if content is None:
        return "row without a content"
    facts = [record.get(name) or "" for name in FACTS]
    if not all(is_storable(text) for text in (content, *facts)):
        return "not text"
    own_score = record.get("quality_score")
    if isinstance(own_score, int | float) and not abs(own_score) <= LARGEST_SCORE:
        return "quality_score out of range"
    if metadata is None:
        return "metadata that cannot be stored"
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
    """A record's text, and its metadata with the two parts of a pair; no metadata where Postgres could not hold it."""
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
    """Parquet's own types, as JSON has none for them."""
    if isinstance(value, datetime | date):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} is no JSON")


def stored(name: str) -> str:
    """A name of the file system as text; bytes of it that are not UTF-8 become question marks."""
    return name.encode("utf-8", "replace").decode()


def is_storable(text: object) -> bool:
    """Whether Postgres can hold it as text: no NUL character, no half of a surrogate pair."""
    if not isinstance(text, str) or "\0" in text:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
