"""The one folder where a service keeps everything of its own: CODELUPE_HOME."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from service.errors import PreconditionError
from trainer.run_dir import RunDirectory, write_text

LEAST_RUN_BYTES = 256 * 1024**2


@dataclass(frozen=True)
class Home:
    """Paths below CODELUPE_HOME."""

    root: Path

    @property
    def postgres(self) -> Path:
        return self.root / "postgres"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def adapters(self) -> Path:
        return self.models / "adapters"

    @property
    def log_file(self) -> Path:
        return self.root / "logs" / "continuous_training_qwen.log"

    @property
    def lock(self) -> Path:
        return self.root / "service.lock"

    def run(self, run_id: int) -> RunDirectory:
        return RunDirectory(self.runs / f"{run_id:06d}")

    def adapter(self, version: int) -> Path:
        return self.adapters / f"v{version:06d}"

    def adapter_versions(self) -> list[int]:
        """Versions whose folder is here."""
        names = (path.name.removeprefix("v") for path in self.adapters.glob("v*"))
        return sorted(int(name) for name in names if name.isdecimal() and len(name) < 19)

    def leftovers(self) -> list[Path]:
        """What interrupted writes left: hidden folders that end in .tmp. Of every run that ever was there is a folder,
        so names are looked at one by one."""
        found = []
        for folder in (self.adapters, self.runs):
            with os.scandir(folder) as entries:
                for one in entries:
                    hidden = one.name.startswith(".") and one.name.endswith(".tmp")
                    if hidden and one.is_dir(follow_symlinks=False):
                        found.append(Path(one.path))
        return found

    def pointer(self, stream: str) -> Path:
        """The symlink that always names the stream's current adapter."""
        return self.models / stream

    def prepare(self) -> None:
        """Make the folders.

        Raises:
            PreconditionError: a folder cannot be made or written.
        """
        for folder in (self.root, self.runs, self.adapters, self.log_file.parent):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                probe = folder / f".writable.{os.getpid()}"
                probe.touch()
                probe.unlink()
            except OSError as error:
                raise PreconditionError(
                    f"{folder} cannot be written ({error.strerror}); set CODELUPE_HOME to a folder that can"
                ) from error

    def instance(self) -> str:
        """Name of the service of this folder: it survives restarts, so its next start may take over its own lease."""
        path = self.root / "instance-id"
        if not path.exists():
            write_text(path, f"{uuid.uuid4().hex[:12]}\n")
        return path.read_text(encoding="utf-8").strip()

    def free_bytes(self) -> int:
        """Bytes left where runs and adapters are written; on the fuller disk, where the two are mounted apart."""
        return min(shutil.disk_usage(folder).free for folder in (self.runs, self.models))

    def run_bytes(self) -> int:
        """What a run needs at most on disk, from the newest adapter's size: best and last checkpoint (adapter and
        optimizer, about three adapters each), the result and its published copy."""
        folders = sorted(self.adapters.glob("v*"))
        adapter = sum(path.stat().st_size for path in folders[-1].iterdir()) if folders else 0
        return max(LEAST_RUN_BYTES, 8 * adapter)


@contextmanager
def only_service(home: Home) -> Iterator[None]:
    """Be the only service of this folder for as long as the block runs; the file names our process id.

    Raises:
        PreconditionError: another service is alive there.
    """
    with home.lock.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise PreconditionError(
                f"a service already runs in {home.root} (process {file.read().strip()}); "
                "end it with `codelupe stop`, or set CODELUPE_HOME to another folder"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
        file.truncate(0)


def running_service(home: Home) -> int | None:
    """Process id of the folder's live service, or None. The lock decides, so a reused id is never believed."""
    try:
        with home.lock.open("r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                text = file.read().strip()
                return int(text) if text.isdigit() else None
    except OSError:
        return None
    return None


def stop_service(home: Home, *, wait_seconds: float) -> int | None:
    """Ask the folder's service to end and wait for it; returns its process id, or None when there was none.

    Raises:
        PreconditionError: it is still there after `wait_seconds`.
    """
    pid = running_service(home)
    if pid is None:
        return None
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + wait_seconds
    while running_service(home) == pid:
        if time.monotonic() > deadline:
            raise PreconditionError(f"process {pid} has not ended after {wait_seconds:.0f} s; see its log")
        time.sleep(0.1)
    return pid
