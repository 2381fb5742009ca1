"""Train a run again in a fresh folder, and compare the result with what the run gave.

Not covered: another processor or another number of threads may round differently, and the result then differs too.
"""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.cycle.launch import TrainerProcess, watch_to_end
from service.cycle.watch import Watcher
from service.errors import PreconditionError, ServiceError, UsageError
from service.publish.folders import copy_unpacked
from service.web.board import Board, Snapshot
from trainer.run_dir import MANIFEST, RunDirectory, RunDirectoryError, new_folder, read_json, sha256_file

WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """What a replay gave, beside what the run gave."""

    folder: Path
    same: bool
    compared: str
    """What was compared: `weights` byte by byte, or `evaluation` where the run's adapter is gone."""
    expected: Any
    """The run's sha256 of the weights, or its losses."""
    found: Any


def copy_inputs(run: RunDirectory, target: Path) -> RunDirectory:
    """Copy a run's inputs, unpacked, to a folder that is made here. The trainer verifies them against the manifest.

    Raises:
        UsageError: the target exists.
        PreconditionError: an input or the parent adapter is gone, or cannot be read.
    """
    if target.exists():
        raise UsageError(f"{target} exists already; choose another folder with --to")
    for link in (run.parent, run.current):
        if link.is_symlink() and not link.exists():
            raise PreconditionError(
                f"the adapter {link.readlink()} is gone, and the run needs it. Retention removes old versions, and the "
                "next verdict removes an open candidate; restore the folder from a backup"
            )
    try:
        names = [*read_json(run.manifest)["files"]]
        int(read_json(run.manifest)["run_id"])  # checked here, so that a bad one leaves no folder
        target.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(target) as folder:
            for name in names:
                copy_unpacked(run.root / name, folder / name)
            shutil.copyfile(run.manifest, folder / MANIFEST)
            for link in (run.parent, run.current):
                if link.exists():
                    (folder / link.name).symlink_to(link.resolve())
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, RunDirectoryError) as error:
        raise PreconditionError(f"the inputs of {run.root} cannot be copied to {target}: {error}") from error
    return RunDirectory(target)


def replay(run: RunDirectory, published: Path, target: Path, secrets: Mapping[str, str]) -> Replayed:
    """Train `run` again in `target`, logging its progress, and compare.

    Args:
        published: the folder of the adapter that the run published. It need not exist.
        secrets: what the trainer's process may know; without a tracker's key it reports to none.

    Raises:
        UsageError: `run` is not a run directory, or the target exists.
        PreconditionError: an input is gone or unreadable, or there is nothing to compare with.
        ServiceError: the trainer failed.
    """
    if not run.manifest.is_file():
        raise UsageError(f"{run.root} is not a run directory: it has no {MANIFEST}")
    compared, expected = _expected(run, published)
    again = copy_inputs(run, target)
    run_id = int(read_json(again.manifest)["run_id"])
    watcher = Watcher(again, run_id, Board(Snapshot()))
    watcher.skip_history()
    code = watch_to_end(TrainerProcess(again, secrets), lambda: False, watcher.read)
    watcher.read()
    if code != 0:
        raise ServiceError(f"the trainer ended with code {code}: {watcher.failure or f'see {again.log}'}")
    found = sha256_file(again.adapter / WEIGHTS) if compared == "weights" else _losses(again)
    return Replayed(folder=target, same=found == expected, compared=compared, expected=expected, found=found)


def _expected(run: RunDirectory, published: Path) -> tuple[str, Any]:
    """The published weights where they are, else those of the run's folder, else its measured losses."""
    if _is_of(published, run):
        return "weights", sha256_file(published / WEIGHTS)
    if (run.adapter / WEIGHTS).is_file():
        return "weights", sha256_file(run.adapter / WEIGHTS)
    if not run.report.is_file():
        raise PreconditionError(f"{run.root} has no adapter and no {run.report.name}: there is nothing to compare with")
    return "evaluation", _losses(run)


def _is_of(published: Path, run: RunDirectory) -> bool:
    """Whether an adapter folder was made from this run's inputs: another home's may have the same number."""
    if not (published / WEIGHTS).is_file():
        return False
    try:
        return bool(read_json(published / "lineage.json")["inputs"] == read_json(run.manifest)["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PreconditionError(f"{published} or {run.manifest} cannot be read ({error})") from error


def _losses(run: RunDirectory) -> dict[str, float]:
    try:
        evaluation = read_json(run.report)["evaluation"]
        return {name: float(evaluation[name]["loss"]) for name in ("anchor", "current", "candidate")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PreconditionError(f"{run.report} cannot be read ({type(error).__name__}: {error})") from error
