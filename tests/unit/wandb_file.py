"""Reads what W&B wrote offline: a run's .wandb file, which is a LevelDB log of protobuf records.

wandb 0.31 has no reader of its own in Python; its messages are wandb's own.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

BLOCK, HEADER = 32768, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(path: Path) -> Iterator[Any]:
    """Yield the records of a .wandb file. A half-written record at its end, as a kill leaves it, is not an error."""
    data = path.read_bytes()
    assert data[:4] == b":W&B", path
    position, whole = 7, b""
    while position + HEADER <= len(data):
        left = BLOCK - position % BLOCK
        if left < HEADER:
            position += left
            continue
        checksum = int.from_bytes(data[position : position + 4], "little")
        length = int.from_bytes(data[position + 4 : position + 6], "little")
        kind = data[position + 6]
        chunk = data[position + HEADER : position + HEADER + length]
        if kind == 0 or len(chunk) < length:
            return
        assert zlib.crc32(bytes([kind]) + chunk) == checksum, f"{path}: a damaged record at {position}"
        position += HEADER + length
        whole = chunk if kind in (FULL, FIRST) else whole + chunk
        if kind in (FULL, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record


def history(paths: list[Path]) -> list[dict[str, Any]]:
    """Return the rows of a run's curves, those of its first file first."""
    rows = [record.history for path in paths for record in records(path) if record.HasField("history")]
    return [{_name(item): json.loads(item.value_json) for item in row.item} for row in rows]


def summary(paths: list[Path]) -> dict[str, Any]:
    """Return the last value of each entry of a run's summary."""
    found: dict[str, Any] = {}
    for path in paths:
        for record in records(path):
            for item in record.summary.update if record.HasField("summary") else ():
                found[_name(item)] = json.loads(item.value_json)
    return found


def run_record(path: Path) -> Any:
    """Return the record that describes the run."""
    return next(record.run for record in records(path) if record.HasField("run"))


def config(path: Path) -> dict[str, Any]:
    """Return the run's config."""
    return {_name(item): json.loads(item.value_json) for item in run_record(path).config.update}


def artifacts(path: Path) -> list[Any]:
    """Return the artifacts that a run logged, without those of its tables."""
    found = [record.artifact for record in records(path) if record.HasField("artifact")]
    found += [
        record.request.log_artifact.artifact
        for record in records(path)
        if record.HasField("request") and record.request.HasField("log_artifact")
    ]
    return [artifact for artifact in found if not artifact.type.startswith(("run_table", "wandb-"))]


def files_of(root: Path) -> list[Path]:
    """Return the .wandb files of a run directory, oldest first."""
    return sorted(root.glob("wandb/*run-*/*.wandb"))


def _name(item: Any) -> str:
    return "/".join(item.nested_key) or item.key
