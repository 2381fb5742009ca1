"""Publishes adapter folders: verified copy to adapters/vN, pointer update, retention. The database is authoritative."""

from __future__ import annotations

import fcntl
import gzip
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from db.adapters import Adapter
from service.logs import event as log
from service.publish.card import CARD, model_card
from service.publish.trained import Tally, as_records, with_ancestors
from service.settings.home import Home
from trainer.records import read_evaluation
from trainer.run_dir import (
    CHUNK_BYTES,
    MANIFEST,
    RunDirectory,
    RunDirectoryError,
    fsync_folder,
    new_folder,
    read_json,
    sha256_file,
    verify_manifest,
    write_json,
    write_manifest,
    write_text,
)

Beat = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Published:
    """An adapter folder, complete and verified."""

    folder: Path
    manifest_sha256: str


def copy_candidate(
    home: Home, run: RunDirectory, version: int, report: dict[str, Any], beat: Beat = lambda: None
) -> Published:
    """Copy a run's adapter with its lineage to adapters/vN. Nothing points to it yet.

    Raises:
        RunDirectoryError: the candidate, or the copy, does not match its manifest.
    """
    verify_manifest(run.adapter, beat)
    target = home.adapter(version)
    with new_folder(target) as temporary:
        for source in sorted(run.adapter.rglob("*")):
            if source.is_file() and source.name != MANIFEST:
                copy = temporary / source.relative_to(run.adapter)
                copy.parent.mkdir(parents=True, exist_ok=True)
                _copy_file(source, copy, beat)
        origin = lineage(home, run, version, report)
        write_json(temporary / "lineage.json", origin)
        write_text(temporary / CARD, model_card(origin, report, list(read_evaluation(run.evaluation))))
        originals = read_json(run.adapter / MANIFEST)["files"]
        manifest_sha256 = write_manifest(temporary, beat, version=version)
        copies = read_json(temporary / MANIFEST)["files"]
        if {name: copies[name] for name in originals} != originals:
            raise RunDirectoryError(f"the copy of {run.adapter} differs from the original. Check the disk")
    try:
        verify_manifest(target, beat)
    except RunDirectoryError:
        shutil.rmtree(target)  # nothing refers to it, and retention would not remove it
        raise
    return Published(folder=target, manifest_sha256=manifest_sha256)


def _copy_file(source: Path, target: Path, beat: Beat) -> None:
    with source.open("rb") as read, target.open("wb") as write:
        while chunk := read.read(CHUNK_BYTES):
            write.write(chunk)
            beat()


def lineage(home: Home, run: RunDirectory, version: int, report: dict[str, Any]) -> dict[str, Any]:
    """Return an adapter's origin: parent, row hashes, what was trained, recipe, seed, evaluation.

    The rows include those of the trunk's runs, as far as their files can still be read. The database has all of them.
    """
    manifest = read_json(run.manifest)
    trunk = manifest.get("trunk", [])
    tally = Tally()
    for earlier in map(home.run, trunk):
        try:
            tally.add(earlier)
        except RunDirectoryError as error:
            log("Rows of an earlier run cannot be read", level=logging.WARNING, reason=str(error))
    tally.add(run)
    trained, parent = tally.trained(), manifest["parent_version"]
    in_all = with_ancestors(trained, None if parent is None else home.adapter(parent))
    return {
        "version": version,
        "stream": manifest["stream"],
        "parent_version": parent,
        "base": manifest["base"],
        "seed": manifest["seed"],
        "recipe": run.recipe.read_text(encoding="utf-8"),
        "inputs": manifest["files"],
        "trunk": trunk,
        "rows": tally.hashes,
        "replayed": tally.replayed,
        "trained": as_records(trained),
        "trained_in_all": None if in_all is None else as_records(in_all),
        "trained_again": {"rows": tally.replayed_rows, "tokens": tally.replayed_tokens},
        "evaluation": report["evaluation"],
    }


def verify_adapter(home: Home, adapter: Adapter, beat: Beat = lambda: None) -> None:
    """Verify that an adapter's folder is byte for byte what was published.

    Raises:
        RunDirectoryError: it is missing, damaged, or of another history.
    """
    folder = home.adapter(adapter.version)
    verify_manifest(folder, beat)
    if (found := sha256_file(folder / MANIFEST)) != adapter.manifest_sha256:
        raise RunDirectoryError(
            f"{folder} is intact but is not version {adapter.version} of this database: its {MANIFEST} has "
            f"sha256 {found[:12]}…, but {adapter.manifest_sha256[:12]}… was published"
        )


# --- the pointer ----------------------------------------------------------------------------------------------


def pointer_target(home: Home, stream: str) -> str | None:
    """Return the target of the stream's pointer, or None."""
    pointer = home.pointer(stream)
    return str(pointer.readlink()) if pointer.is_symlink() else None


def sync_pointer(home: Home, stream: str, current: Adapter | None) -> bool:
    """Point the symlink to the database's current adapter. Returns True if it changed.

    Raises:
        OSError: the pointer cannot be updated, or the current adapter's folder does not exist.
    """
    if current is not None and not home.adapter(current.version).is_dir():
        raise FileNotFoundError(
            f"{home.adapter(current.version)} does not exist, but it is the current adapter. "
            "Restore it from a backup, or run `codelupe rollback` to another version"
        )
    wanted = None if current is None else os.path.join("adapters", Path(current.folder).name)  # noqa: PTH118
    if pointer_target(home, stream) == wanted:
        return False
    pointer = home.pointer(stream)
    if pointer.exists() and not pointer.is_symlink():
        raise FileExistsError("the pointer is a folder, not a symlink (a copy that followed symlinks?). Move it away")
    with _publishing(home):
        if wanted is None:
            pointer.unlink()
        else:
            temporary = pointer.with_name(f".{stream}.{os.getpid()}.tmp")
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(wanted)
            temporary.replace(pointer)
        fsync_folder(pointer.parent)
    return True


@contextmanager
def _publishing(home: Home) -> Iterator[None]:
    """Lock so that one process at a time updates pointers."""
    with (home.models / ".publish.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# --- retention ------------------------------------------------------------------------------------------------


def tidy_run(run: RunDirectory, *, keep_adapter: bool = False, keep_checkpoints: bool = False) -> None:
    """Clean up after a verdict: remove checkpoints and candidate, compress the rows. Safe to repeat.

    Args:
        keep_adapter: whether the next run trains on from the candidate, or a person wants to have it
    """
    if not keep_checkpoints:
        shutil.rmtree(run.checkpoints, ignore_errors=True)
    if not keep_adapter:
        shutil.rmtree(run.adapter, ignore_errors=True)
    for path in (run.rows, run.held_out, run.replay):
        if path.exists():
            packed = path.with_name(path.name + ".gz")
            temporary = path.with_name(f".{packed.name}.tmp")
            with path.open("rb") as read, gzip.open(temporary, "wb") as write:
                shutil.copyfileobj(read, write, CHUNK_BYTES)
            temporary.replace(packed)
            path.unlink()


def copy_unpacked(source: Path, target: Path) -> None:
    """Copy a file of a run, also if `tidy_run` has compressed it.

    Raises:
        OSError, EOFError, zlib.error: it is missing or damaged.
    """
    packed = source.with_name(f"{source.name}.gz")
    if source.exists() or not packed.exists():
        shutil.copyfile(source, target)
        return
    with gzip.open(packed) as read, target.open("wb") as write:
        shutil.copyfileobj(read, write, CHUNK_BYTES)


def retire(home: Home, history: list[Adapter], keep: int) -> list[Path]:
    """Remove adapter folders beyond the newest `keep`, but never the current one. Returns the removed folders.

    `history` lists one stream's existing folders. Leftovers of interrupted writes (hidden .tmp folders) go too.
    """
    newest = sorted(history, key=lambda adapter: adapter.version, reverse=True)
    kept = {adapter.version for adapter in newest[:keep]} | {a.version for a in history if a.is_current}
    removed = []
    for adapter in history:
        folder = home.adapter(adapter.version)
        if adapter.version not in kept and folder.exists():
            shutil.rmtree(folder)
            removed.append(folder)
    for leftover in home.leftovers():
        shutil.rmtree(leftover)
        removed.append(leftover)
    return removed
