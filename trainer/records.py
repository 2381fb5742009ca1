"""The records in a run directory's files: rows, outcomes, suspects and events, as lines of JSON. (no torch)"""

from __future__ import annotations

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
    """One file of the source table, as it was at the claim."""

    file_id: int
    repository: str | None
    path: str | None
    language: str
    content: str
    sha256: str
    """Of the content's UTF-8 bytes."""
    fresh: bool = True
    """False for a held-out or replay row that an earlier run claimed."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What the producer knows about the file besides: the source table's `metadata`."""


@dataclass(frozen=True, kw_only=True)
class RowOutcome:
    """What became of one row of this run. `trained` means: seen before the step whose weights are the result."""

    file_id: int
    outcome: Outcome
    reason: str | None = None
    """Why a row was rejected; None otherwise."""
    samples: int = 0
    tokens: int = 0
    """Tokens of the row that went through the model up to the best step (held out: that are evaluated)."""


@dataclass(frozen=True, kw_only=True)
class Suspects:
    """Rows that may have made a run fail."""

    reason: Failure
    step: int
    file_ids: tuple[int, ...]
    """Ascending; at least one."""


def json_line(record: Any) -> str:
    """One record as a line of JSON. Lone surrogates, which UTF-8 cannot hold, stay escaped."""
    return json.dumps(record, ensure_ascii=True, allow_nan=False, separators=(",", ":")) + "\n"


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Records of a JSON-lines file; a missing file has none.

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
                raise RunDirectoryError(f"{path}, line {number}: a JSON object is expected")
            yield record


def read_rows(path: Path) -> Iterator[Row]:
    """Rows of rows.jsonl, held_out.jsonl or replay.jsonl, one at a time."""
    for record in read_lines(path):
        try:
            yield Row(**record)
        except TypeError as error:
            raise RunDirectoryError(f"{path}: a row has the wrong fields ({error})") from error


def write_outcomes(path: Path, outcomes: Iterable[RowOutcome]) -> None:
    """Write rows_outcome.jsonl whole."""
    write_text(path, "".join(json_line(asdict(outcome)) for outcome in outcomes))


def read_outcomes(path: Path) -> Iterator[RowOutcome]:
    """What the trainer reported of each row."""
    for record in read_lines(path):
        yield RowOutcome(**record)


def read_suspects(path: Path) -> Suspects | None:
    """Who may have made a run fail; None where the trainer named nobody.

    Raises:
        RunDirectoryError: the file is not one of these.
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
    """Append one event. A number that is not finite is written as its name, so that a line is always JSON."""
    record = {"time": round(time.time(), 3), "event": event} | {
        key: str(value) if isinstance(value, float) and value - value != 0 else value for key, value in fields.items()
    }
    with path.open("a", encoding="utf-8") as file:
        file.write(json_line(record))


@dataclass
class EventTail:
    """Reads events.jsonl as it grows: each call of `new()` gives the events since the last one."""

    path: Path
    offset: int = 0

    def new(self) -> list[dict[str, Any]]:
        """Whole lines written since the last call. A half-written or damaged line is left out."""
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
            except ValueError:  # a crash can leave half a line, which the next start's first event then completes
                continue
            if isinstance(record, dict) and "event" in record:
                events.append(record)
        return events
