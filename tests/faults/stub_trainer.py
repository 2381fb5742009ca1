"""A trainer without a model: it consumes the rows of a run directory, and writes checkpoints and a report.

Usage: `python stub_trainer.py run DIR`. Everything that the service sees of a trainer is real: the lock, stdin,
signals, events, outcomes, the adapter folder, and the report at the end. Each adapter lists the ids that its whole
lineage consumed.
"""

from __future__ import annotations

import json
import os
import random
import re
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from trainer.errors import Stopped
from trainer.records import Row, RowOutcome, append_event, read_rows, write_outcomes
from trainer.run_dir import RunDirectory, held_lock, new_folder, read_json, verify_manifest, write_json, write_manifest
from trainer.stop import StopRequest

STEP_ROWS = 4
MAX_STEPS = 200
STEP_SECONDS = 0.004
TINY_LENGTH = 64
CONSUMED = "consumed.json"


def main(root: Path) -> int:
    """Train a run directory. The exit codes are those of the real trainer."""
    directory, stop = RunDirectory(root), StopRequest()
    try:
        stop.listen()
        with held_lock(directory.lock, wait_seconds=60):
            if not directory.report.exists():
                train(directory, stop)
    except Stopped as stopped:
        append_event(directory.events, "stopping", reason=str(stopped))
        return stopped.exit_code
    return 0


def train(directory: RunDirectory, stop: StopRequest) -> None:
    manifest = verify_manifest(directory.root)
    run_id = int(manifest["run_id"])
    chance = random.Random(run_id)
    rows, held_out = list(read_rows(directory.rows)), list(read_rows(directory.held_out))
    replay = list(read_rows(directory.replay))
    too_long = [row for row in (*rows, *held_out) if row.fresh and tiny_length(directory)]
    rows = [row for row in rows if row not in too_long]
    chance.shuffle(rows)
    best = len(rows) if len(rows) < STEP_ROWS or chance.random() < 0.6 else len(rows) - len(rows) // STEP_ROWS
    append_event(directory.events, "started", device="none", world_size=1)
    done = directory.checkpoints / "done.json"
    step = read_json(done)["rows"] if done.exists() else 0
    directory.checkpoints.mkdir(exist_ok=True)
    step_rows = max(STEP_ROWS, len(rows) // MAX_STEPS)
    while step < len(rows):
        time.sleep(STEP_SECONDS)
        step = min(step + step_rows, len(rows))
        with stop.deferred():
            write_json(done, {"rows": step})
        append_event(directory.events, "step", step=step, steps_total=len(rows), loss=1.0 / (step + 1))
        stop.check()
    outcomes = [RowOutcome(file_id=row.file_id, outcome="trained", samples=1, tokens=10) for row in rows[:best]]
    outcomes += [RowOutcome(file_id=row.file_id, outcome="unused", samples=1) for row in rows[best:]]
    outcomes += [RowOutcome(file_id=row.file_id, outcome="replayed", samples=1, tokens=10) for row in replay]
    outcomes += [RowOutcome(file_id=row.file_id, outcome="rejected", reason="too_long") for row in too_long]
    held_out = [row for row in held_out if row not in too_long]
    outcomes += [RowOutcome(file_id=row.file_id, outcome="held_out", samples=1, tokens=10) for row in held_out]
    with stop.deferred():
        write_adapter(directory, rows[:best])
        write_outcomes(directory.rows_outcome, outcomes)
        write_json(
            directory.report, report(run_id, manifest, trained=best, replayed=len(replay), held_out=len(held_out))
        )
    append_event(directory.events, "finished", seconds=0.1)


def tiny_length(directory: RunDirectory) -> bool:
    """Whether the recipe allows so few tokens that no file fits."""
    found = re.search(r"^  max_length: (\d+)$", directory.recipe.read_text(), re.MULTILINE)
    return found is not None and int(found[1]) <= TINY_LENGTH


def write_adapter(directory: RunDirectory, trained: list[Row]) -> None:
    before = directory.parent / CONSUMED
    consumed = json.loads(before.read_text()) if before.exists() else []
    with new_folder(directory.adapter) as folder:
        (folder / "adapter_model.safetensors").write_bytes(os.urandom(2048))
        (folder / "adapter_config.json").write_text("{}")
        (folder / CONSUMED).write_text(json.dumps(consumed + [row.file_id for row in trained]))
        write_manifest(folder)


def report(
    run_id: int, manifest: dict[str, object], *, trained: int, replayed: int, held_out: int
) -> dict[str, object]:
    """Return the report. Every seventh candidate is worse than the current adapter."""
    current = 1.0 - 1e-6 * run_id
    candidate = current + 1.0 if run_id % 7 == 0 else current - 1e-6
    return {
        "format": 1,
        "run_id": run_id,
        "stream": manifest["stream"],
        "parent_version": manifest["parent_version"],
        "held_out": {"samples": held_out, "tokens": 10 * held_out},
        "evaluation": {"anchor": {"loss": 1.0}, "current": {"loss": current}, "candidate": {"loss": candidate}},
        "train": {"loss": 1.0, "tokens_published": 10 * (trained + replayed)},
        "rows": {"trained": trained, "replayed": replayed},
        "seconds": {},
    }


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[2])))
