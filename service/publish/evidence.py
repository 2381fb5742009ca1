"""Compares the disk with the database: published adapters, their lineage, and their runs.

Not covered: adapter folders that retention removed, and files that were cleaned up after a run.
"""

from __future__ import annotations

import gzip
import hashlib
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

from db import adapters, runs
from db.adapters import Adapter
from db.pool import Pool
from service.publish.folders import verify_adapter
from service.settings.home import Home
from trainer.records import read_outcomes
from trainer.run_dir import CHUNK_BYTES, RunDirectory, RunDirectoryError, read_json, sha256_file

SEEN = ("trained", "replayed")
"""Outcomes of rows that a run was trained on."""
RECHECK_SECONDS = 1.0
"""A running service may be removing or compressing these files, so a problem is checked twice."""


def disk_problems(home: Home, pool: Pool, stream: str) -> list[str]:
    """Return all mismatches, one sentence each. Reads every byte of every existing adapter."""
    doubtful = [one.version for one in adapters.history(pool, stream) if any(_problems(home, pool, one))]
    if doubtful:
        time.sleep(RECHECK_SECONDS)
    again = adapters.history(pool, stream, among=doubtful)
    return [problem for adapter in again for problem in _problems(home, pool, adapter)]


def _problems(home: Home, pool: Pool, adapter: Adapter) -> Iterator[str]:
    if home.adapter(adapter.version).is_dir():
        yield from _adapter(home, pool, adapter)
    elif adapter.is_current:
        yield f"the folder of the current adapter, {home.adapter(adapter.version)}, does not exist"


def _adapter(home: Home, pool: Pool, adapter: Adapter) -> Iterator[str]:
    name = f"version {adapter.version}"
    try:
        verify_adapter(home, adapter)
        lineage = read_json(home.adapter(adapter.version) / "lineage.json")
        told = (lineage["version"], lineage["parent_version"])
        inputs, rows = dict(lineage["inputs"]), {int(row["file_id"]) for row in lineage["rows"]}
        trunk = [int(run_id) for run_id in lineage.get("trunk", [])]
    except RunDirectoryError as error:
        yield f"{name}: {error}"
        return
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield f"{name}: its lineage.json cannot be read ({type(error).__name__}: {error})"
        return
    if told != (adapter.version, adapter.parent_version):
        recorded = adapter.parent_version
        yield f"{name}: lineage.json says version {told[0]} from {told[1]}, the database says from {recorded}"
    run = home.run(adapter.version)
    if run.root.is_dir():
        yield from (f"{name}: {problem}" for problem in _run(run, inputs))
    settled = runs.settled(pool, adapter.version)
    earlier = {file_id for run_id in trunk for file_id in runs.settled(pool, run_id)}
    if strange := rows - settled.keys() - earlier:
        yield f"{name}: lineage.json lists rows that its run did not claim: files {_some(strange)}"
    yield from (f"{name}: {problem}" for problem in _outcomes(run, settled))


def _run(run: RunDirectory, inputs: dict[str, str]) -> Iterator[str]:
    """Check the hashes of a run's input files, compressed or not."""
    for name, expected in inputs.items():
        path = plain = run.root / name
        if not plain.is_file():
            path = plain.with_name(f"{plain.name}.gz")
        if not path.is_file():
            continue
        try:
            found = sha256_file(path) if path == plain else _sha256_packed(path)
        except (OSError, EOFError, zlib.error) as error:
            yield f"{path} cannot be read ({error})"
            continue
        if found != expected:
            yield f"{plain} differs from the file that the adapter was trained on"


def _outcomes(run: RunDirectory, settled: dict[int, tuple[str | None, int | None]]) -> Iterator[str]:
    """Compare the trainer's reported outcome of each row with the database."""
    try:
        reported = {outcome.file_id: outcome for outcome in read_outcomes(run.rows_outcome)}
    except (OSError, ValueError, TypeError, RunDirectoryError) as error:
        yield f"{run.rows_outcome} cannot be read ({error})"
        return
    if not reported:
        return
    differ = {
        file_id
        for file_id, (outcome, tokens) in settled.items()
        if outcome in SEEN
        and (file_id not in reported or (reported[file_id].outcome, reported[file_id].tokens) != (outcome, tokens))
    }
    differ |= {
        file_id
        for file_id, outcome in reported.items()
        if outcome.outcome in SEEN and settled.get(file_id, (None, None))[0] != outcome.outcome
    }
    if differ:
        yield f"{run.rows_outcome} and the database disagree on the trained rows: files {_some(differ)}"


def _sha256_packed(path: Path) -> str:
    digest = hashlib.sha256()
    with gzip.open(path) as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _some(ids: set[int]) -> str:
    shown = ", ".join(map(str, sorted(ids)[:10]))
    return shown + (", …" if len(ids) > 10 else "")
