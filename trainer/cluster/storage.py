"""Takes a run to machines without a shared folder, and brings its results back: through fsspec (S3, GCS, a folder, …).

    run directory ──inputs, parent, current, checkpoints──▶ URL/<run>/ ──▶ folder of each machine
                  ◀──checkpoints, adapter, outputs────────            ◀── rank 0's machine

Whatever travels is a folder with a MANIFEST.json. The manifest is written last and read first, and files are verified
on arrival, under a temporary name. So nobody reads a folder that is half there. (no torch)
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.errors import ClusterFailed, UnusableInput
from trainer.run_dir import (
    MANIFEST,
    RunDirectory,
    RunDirectoryError,
    fsync_folder,
    new_folder,
    read_json,
    verify_manifest,
    write_manifest,
)

LINKED = ("parent", "current")
"""Adapters that the inputs link to."""
OUTPUTS = (
    "dataset_stats.json", "evaluation.jsonl", "rows_outcome.jsonl", "suspects.json", "tensorboard", "wandb",
    "wandb.log", "report.json",
)  # fmt: skip
"""What a run writes besides checkpoints, adapter and events. The report is moved last."""


class Storage:
    """The place of one run in a storage."""

    def __init__(self, url: str, name: str) -> None:
        """Raises UnusableInput if the URL's kind is unknown, or its package is missing."""
        import fsspec

        try:
            self._files, root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise UnusableInput(
                f"distributed.storage: {url} cannot be used ({error}). "
                "S3 needs `pip install s3fs`, and GCS `pip install gcsfs`, on every machine"
            ) from error
        self._url, self._root = url, f"{root.rstrip('/')}/{name}"

    def put(self, folder: Path, place: str) -> None:
        """Send a folder with a manifest, unless the same one is there."""
        manifest = (folder / MANIFEST).read_bytes()
        with self._told():
            if self._read(f"{place}/{MANIFEST}") == manifest:
                return
            self._files.makedirs(f"{self._root}/{place}", exist_ok=True)
            for name in read_json(folder / MANIFEST)["files"]:
                self._files.makedirs(f"{self._root}/{place}/{name}".rpartition("/")[0], exist_ok=True)
                self._files.put_file(str(folder / name), f"{self._root}/{place}/{name}")
            self._write(f"{place}/{MANIFEST}", manifest)

    def get(self, place: str, folder: Path) -> bool:
        """Fetch a folder and verify it. Returns False if the storage has none that is complete."""
        with self._told():
            if self._read(f"{place}/{MANIFEST}") is None:
                return False
            try:
                with new_folder(folder) as temporary:
                    self._fetch(f"{place}/{MANIFEST}", temporary / MANIFEST)
                    for name in read_json(temporary / MANIFEST)["files"]:
                        (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                        self._fetch(f"{place}/{name}", temporary / name)
                    verify_manifest(temporary)
            except (FileNotFoundError, RunDirectoryError):  # half sent, or changed meanwhile
                return False
            return True

    def drop(self, place: str) -> None:
        """Remove a folder, its manifest first."""
        with self._told():
            if self._files.exists(f"{self._root}/{place}/{MANIFEST}"):
                self._files.rm(f"{self._root}/{place}/{MANIFEST}")
            if self._files.exists(f"{self._root}/{place}"):
                self._files.rm(f"{self._root}/{place}", recursive=True)

    def names(self, place: str) -> list[str]:
        """Return the names below a place."""
        with self._told():
            self._files.invalidate_cache()
            if not self._files.exists(f"{self._root}/{place}"):
                return []
            found = self._files.ls(f"{self._root}/{place}", detail=False)
            return sorted(path.rstrip("/").rpartition("/")[2] for path in found)

    def _read(self, path: str) -> bytes | None:
        self._files.invalidate_cache()
        try:
            return bytes(self._files.cat_file(f"{self._root}/{path}"))
        except FileNotFoundError:
            return None

    def _write(self, path: str, content: bytes) -> None:
        self._files.pipe_file(f"{self._root}/{path}", content)

    def _fetch(self, path: str, to: Path) -> None:
        self._files.get_file(f"{self._root}/{path}", str(to))

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Name the storage in its errors."""
        try:
            yield
        except (UnusableInput, ClusterFailed):
            raise
        except Exception as error:
            raise ClusterFailed(f"distributed.storage: {self._url} failed ({type(error).__name__}: {error})") from error


# --- on the driver's machine ----------------------------------------------------------------------------------


def send_run(storage: Storage, directory: RunDirectory, start: str) -> None:
    """Send what ranks of an attempt need. What is there already is not sent again."""
    try:
        verify_manifest(directory.root)
    except RunDirectoryError as error:
        raise UnusableInput(f"{error}. Claim the rows again. Never edit inputs in place") from error
    bring_checkpoints(storage, directory)  # of a start that was killed
    storage.put(directory.root, "inputs")
    for name in LINKED:
        if (link := directory.root / name).exists():
            storage.put(link.resolve(), name)
    send_checkpoints(storage, directory)
    with tempfile.TemporaryDirectory(prefix="codelupe-history-") as temporary:
        if directory.events.exists():  # energy and trackers go on from them
            shutil.copyfile(directory.events, Path(temporary) / directory.events.name)
        write_manifest(Path(temporary))
        storage.put(Path(temporary), f"{start}/history")


def bring_results(storage: Storage, directory: RunDirectory, start: str) -> None:
    """Bring back what the ranks of an attempt have sent. The report comes last, as in a run on one machine."""
    bring_checkpoints(storage, directory)
    storage.get(f"{start}/adapter", directory.adapter)
    with tempfile.TemporaryDirectory(dir=directory.root, prefix=".outputs-") as temporary:
        outputs = Path(temporary) / "outputs"
        if not storage.get(f"{start}/outputs", outputs):
            return
        for name in OUTPUTS:
            if (outputs / name).exists():
                if (outputs / name).is_dir():  # trackers add files at each start
                    shutil.copytree(outputs / name, directory.root / name, dirs_exist_ok=True)
                else:
                    (outputs / name).rename(directory.root / name)
        fsync_folder(directory.root)


def bring_checkpoints(storage: Storage, directory: RunDirectory) -> None:
    """Bring the checkpoints that the run directory lacks, and remove those that the ranks have removed."""
    sent = [name for name in storage.names("checkpoints") if name.startswith("step-")]
    brought = [
        name
        for name in sent
        if (directory.checkpoints / name / MANIFEST).exists()
        or storage.get(f"checkpoints/{name}", directory.checkpoints / name)
    ]
    if brought:
        for path in directory.checkpoints.glob("step-*"):
            if path.name not in sent and path.name < max(brought):
                shutil.rmtree(path)


# --- on a rank's machine --------------------------------------------------------------------------------------


def fetch_run(storage: Storage, name: str, start: str) -> Path:
    """Fetch the inputs to a folder of this machine, once for all its ranks. Returns the folder.

    Args:
        start: names the attempt. The folder of an earlier one is removed
    """
    folder = Path(tempfile.gettempdir()) / f"{name}.{os.getuid()}"
    with folder.with_name(f"{folder.name}.fetch").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.seek(0)
        if lock.read() == start and folder.is_dir():
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        if not storage.get("inputs", folder):
            raise ClusterFailed(f"distributed.storage has no complete inputs of {name}")
        for place in LINKED:
            storage.get(place, folder / place)
        if storage.get(f"{start}/history", folder / "history"):
            for path in (folder / "history").glob("*.jsonl"):
                path.rename(folder / path.name)
        for step in storage.names("checkpoints"):
            storage.get(f"checkpoints/{step}", folder / "checkpoints" / step)
        lock.seek(0)
        lock.truncate()
        lock.write(start)
    return folder


def send_checkpoints(storage: Storage, directory: RunDirectory) -> None:
    """Send new checkpoints, and remove from the storage those that are gone here."""
    if not directory.checkpoints.exists():
        return
    here = sorted(path for path in directory.checkpoints.glob("step-*") if path.is_dir())
    for path in here:
        try:
            storage.put(path, f"checkpoints/{path.name}")
        except FileNotFoundError:  # the trainer has removed it meanwhile
            continue
    for name in storage.names("checkpoints"):
        if here and name < here[-1].name and not (directory.checkpoints / name).exists():
            storage.drop(f"checkpoints/{name}")


def send_results(storage: Storage, directory: RunDirectory, start: str) -> None:
    """Send everything that a rank 0 leaves."""
    send_checkpoints(storage, directory)
    if directory.adapter.is_dir():
        storage.put(directory.adapter, f"{start}/adapter")
    with tempfile.TemporaryDirectory(prefix="codelupe-outputs-") as temporary:
        for name in OUTPUTS:
            if (path := directory.root / name).is_dir():
                shutil.copytree(path, Path(temporary) / name)
            elif path.exists():
                shutil.copyfile(path, Path(temporary) / name)
        write_manifest(Path(temporary))
        storage.put(Path(temporary), f"{start}/outputs")
