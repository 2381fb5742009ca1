"""CODELUPE_HOME, the folder that holds all files of a service."""

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
from trainer.run_dir import RunDirectory, read_json, write_json, write_text

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

    @property
    def address(self) -> Path:
        """Where the folder's running service listens."""
        return self.root / "service.json"

    def run(self, run_id: int) -> RunDirectory:
        return RunDirectory(self.runs / f"{run_id:06d}")

    def adapter(self, version: int) -> Path:
        return self.adapters / f"v{version:06d}"

    def adapter_versions(self) -> list[int]:
        """Return the versions whose folder exists."""
        names = (path.name.removeprefix("v") for path in self.adapters.glob("v*"))
        return sorted(int(name) for name in names if name.isdecimal() and len(name) < 19)

    def leftovers(self) -> list[Path]:
        """Return leftovers of interrupted writes: hidden folders that end in .tmp.

        Every past run has a folder, so the names are read one by one.
        """
        found = []
        for folder in (self.adapters, self.runs):
            with os.scandir(folder) as entries:
                for one in entries:
                    hidden = one.name.startswith(".") and one.name.endswith(".tmp")
                    if hidden and one.is_dir(follow_symlinks=False):
                        found.append(Path(one.path))
        return found

    def pointer(self, stream: str) -> Path:
        """The symlink to the stream's current adapter."""
        return self.models / stream

    def prepare(self) -> None:
        """Create the folders.

        Raises:
            PreconditionError: a folder cannot be created or written.
        """
        for folder in (self.root, self.runs, self.adapters, self.log_file.parent):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                probe = folder / f".writable.{os.getpid()}"
                probe.touch()
                probe.unlink()
            except OSError as error:
                raise PreconditionError(
                    f"{folder} cannot be written ({error.strerror}). Set CODELUPE_HOME to a writable folder"
                ) from error

    def instance(self) -> str:
        """Return the service's name. It survives restarts, so that the next start can renew its own lease."""
        path = self.root / "instance-id"
        if not path.exists():
            write_text(path, f"{uuid.uuid4().hex[:12]}\n")
        try:
            name = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise PreconditionError(
                f"{path} cannot be read ({error}). Delete it; the service makes a new one"
            ) from error
        if not name:
            raise PreconditionError(f"{path} is empty. Delete it; the service makes a new one")
        return name

    def free_bytes(self) -> int:
        """Return the free bytes for runs and adapters. On two disks, return the smaller value."""
        return min(shutil.disk_usage(folder).free for folder in (self.runs, self.models))

    def run_bytes(self) -> int:
        """Return the maximum disk space of a run, estimated from the newest adapter's size.

        A run writes the best and the last checkpoint (adapter and optimizer, about three adapters each), the result and
        its published copy.
        """
        folders = sorted(self.adapters.glob("v*"))
        adapter = sum(path.stat().st_size for path in folders[-1].iterdir()) if folders else 0
        return max(LEAST_RUN_BYTES, 8 * adapter)


@contextmanager
def only_service(home: Home) -> Iterator[None]:
    """Lock the folder for one service while the block runs. The lock file holds the process id.

    Raises:
        PreconditionError: another service is running there.
    """
    with home.lock.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise PreconditionError(
                f"a service already runs in {home.root} (process {file.read().strip()}). "
                "Stop it with `codelupe stop`, or set CODELUPE_HOME to another folder"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
        file.truncate(0)


@contextmanager
def address_noted(home: Home, host: str, port: int) -> Iterator[None]:
    """Tell the folder's other commands where the service listens, while the block runs."""
    write_json(home.address, {"pid": os.getpid(), "host": host, "port": port})
    try:
        yield
    finally:
        home.address.unlink(missing_ok=True)


def service_address(home: Home) -> tuple[str, int] | None:
    """Return host and port of the folder's running service, or None. What a killed service left does not count."""
    try:
        found = read_json(home.address)
        pid, host, port = int(found["pid"]), str(found["host"]), int(found["port"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (host, port) if running_service(home) == pid else None


def running_service(home: Home) -> int | None:
    """Return the process id of the folder's running service, or None. The lock decides, not the id."""
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
    """Stop the folder's service and wait for it. Returns its process id, or None if none was running.

    Raises:
        PreconditionError: it is still running after `wait_seconds`.
    """
    pid = running_service(home)
    if pid is None:
        return None
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:  # it ended just now
        return pid
    except PermissionError as error:
        raise PreconditionError(f"process {pid} belongs to another user, who has to stop it") from error
    deadline = time.monotonic() + wait_seconds
    while running_service(home) == pid:
        if time.monotonic() > deadline:
            raise PreconditionError(f"process {pid} is still running after {wait_seconds:.0f} s. See its log")
        time.sleep(0.1)
    return pid
