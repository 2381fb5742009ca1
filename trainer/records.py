"""The records in a run directory's files: rows, outcomes, suspects and events, as lines of JSON. (no torch)"""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from trainer.run_dir import RunDirectoryError, read_json, write_text

Outcome = Literal["trained", "unused", "rejected", "held_out", "replayed"]
Failure = Literal["non_finite", "out_of_memory"]


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
    run_id: int | None = None
    """The earlier run that claimed the row. None for a row of this run."""
    license: str | None = None
    """As the source table states it. None: unknown."""
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
class SampleEvaluation:
    """What the judged models give for one held-out sample: one line of evaluation.jsonl."""

    file_ids: tuple[int, ...]
    """The sample's source rows."""
    fresh: bool
    """Whether this run claimed the first row. False for a row that an earlier run held out."""
    run_id: int | None = None
    """The earlier run that held the first row out. None for a row of this run."""
    repository: str | None
    path: str | None
    language: str
    kind: str
    """Kind of sample, as in dataset_stats.json."""
    tokens: int
    """Supervised tokens."""
    loss: Mapping[str, float]
    """Nats over all supervised tokens, by model: anchor, current, candidate."""
    correct: Mapping[str, int]
    """Top-1 predictions among the supervised tokens, by model."""


@dataclass(frozen=True, kw_only=True)
class Suspects:
    """Rows that may have made a run fail."""

    reason: Failure
    step: int
    file_ids: tuple[int, ...]
    """Ascending; at least one."""


def json_line(record: Any) -> str:
    """Format a record as a JSON line. Lone surrogates stay escaped, because UTF-8 cannot encode them."""
    return json.dumps(record, ensure_ascii=True, allow_nan=False, separators=(",", ":")) + "\n"


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a JSON-lines file, gzipped if its name says so. A missing file has none.

    Raises:
        RunDirectoryError: a line is not a JSON object.
    """
    if not path.exists():
        return
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
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
            row = Row(**record)
        except TypeError as error:
            raise RunDirectoryError(f"{path}: a row has the wrong fields ({error})") from error
        if not (isinstance(row.content, str) and isinstance(row.language, str) and type(row.file_id) is int):
            raise RunDirectoryError(f"{path}: row {row.file_id!r} has a field of the wrong type")
        yield row


def write_outcomes(path: Path, outcomes: Iterable[RowOutcome]) -> None:
    """Write rows_outcome.jsonl atomically."""
    write_text(path, "".join(json_line(asdict(outcome)) for outcome in outcomes))


def read_outcomes(path: Path) -> Iterator[RowOutcome]:
    """Yield the trainer's outcome of each row."""
    for record in read_lines(path):
        yield RowOutcome(**record)


def write_evaluation(path: Path, samples: Iterable[SampleEvaluation]) -> None:
    """Write evaluation.jsonl atomically."""
    write_text(path, "".join(json_line(asdict(sample)) for sample in samples))


def read_evaluation(path: Path) -> Iterator[SampleEvaluation]:
    """Yield the lines of evaluation.jsonl.

    Raises:
        RunDirectoryError: a line has other fields.
    """
    for record in read_lines(path):
        try:
            yield SampleEvaluation(**{**record, "file_ids": tuple(record["file_ids"])})
        except (TypeError, KeyError) as error:
            raise RunDirectoryError(f"{path}: a line has the wrong fields ({error})") from error


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
