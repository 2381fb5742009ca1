"""What W&B wrote offline or could not send, and how it is sent later: by `wandb sync`, the oldest folder first.

A run has several folders: one for each start of its trainer, and one for the verdict. They have one id, so at W&B they
are one run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from service.cycle.launch import trainer_environment
from trainer.run_dir import RunDirectory, RunDirectoryError, held_lock, read_json

Outcome = Literal["sent", "was sent", "waits", "in use", "failed"]


@dataclass(frozen=True, kw_only=True)
class WandbFolder:
    """One folder that W&B wrote, offline or online."""

    run: RunDirectory
    folder: Path

    @property
    def is_offline(self) -> bool:
        """Whether W&B was told to write files."""
        return self.folder.name.startswith("offline-")

    @property
    def is_sent(self) -> bool:
        """Whether there is the mark that all of it has arrived. `wandb sync` leaves it, and so does an online run."""
        return any(self.folder.glob("*.wandb.synced"))


@dataclass(frozen=True, kw_only=True)
class Sending:
    """What became of one folder."""

    run: str
    folder: str
    outcome: Outcome
    reason: str | None = None


def wandb_folders(runs: Iterable[RunDirectory]) -> Iterator[WandbFolder]:
    """Yield the folders of these runs, the oldest of each run first. Of online ones, those that did not arrive.

    The names are `offline-run-TIME-ID` and `run-TIME-ID`.
    """
    for run in runs:
        found = [*run.root.glob("wandb/offline-run-*"), *run.root.glob("wandb/run-*")]
        for folder in sorted(found, key=lambda folder: folder.name.removeprefix("offline-")):
            one = WandbFolder(run=run, folder=folder)
            if any(folder.glob("*.wandb")) and (one.is_offline or not one.is_sent):
                yield one


def runs_below(root: Path, stream: str | None = None) -> list[RunDirectory]:
    """Return the run directories in a folder, in order. With a stream, only its own."""
    found = [RunDirectory(path) for path in sorted(root.iterdir()) if (path / "wandb" / "id").is_file()]
    return [run for run in found if stream is None or _stream_of(run) == stream]


def is_in_use(run: RunDirectory) -> bool:
    """Whether a trainer or a verdict is writing to the run."""
    if not run.lock.exists():
        return False
    try:
        with held_lock(run.lock, wait_seconds=0):
            return False
    except RunDirectoryError:
        return True


def send(one: WandbFolder, secrets: Mapping[str, str], *, seconds: float) -> str | None:
    """Send one folder with `wandb sync`. Returns the problem, or None if all of it has arrived.

    Its exit code is 0 also after a failure, so its mark decides.

    Args:
        seconds: it is killed after this time
    """
    environment = trainer_environment(os.environ, secrets)
    kept = one.run.root.absolute() / "wandb"
    environment |= {"WANDB_DATA_DIR": str(kept / "data"), "WANDB_CACHE_DIR": str(kept / "cache")}
    process = subprocess.Popen(
        [sys.executable, "-m", "wandb", "sync", "--include-online", str(one.folder)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment,
        cwd=one.run.root, start_new_session=True,
    )  # fmt: skip
    try:
        said = process.communicate(timeout=seconds)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return f"no answer within {seconds:g} s"
    except BaseException:
        process.kill()
        raise
    return None if one.is_sent else _problem(said, secrets.get("WANDB_API_KEY", ""))


def _problem(said: str, key: str) -> str:
    """Return what wandb said went wrong: its last error, else its last line."""
    lines = [line.removeprefix("wandb: ").strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if "ERROR" in line or "error" in line]
    last = (errors or lines or ["wandb said nothing"])[-1]
    return last.replace(key, "***") if key else last


def _stream_of(run: RunDirectory) -> str | None:
    try:
        found = read_json(run.manifest)["stream"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(found)
