"""Caches a 4-bit copy of the base beside the Hub's cache. Later runs map it into memory instead of quantizing.

    <cache>/codelupe/quantized/qwen2.5-coder-14b-instruct-3f9a…/   config.json  *.safetensors  MANIFEST.json last

A copy is specific to base@revision, quantization settings, device type and library versions. It is written atomically,
and nothing depends on it. If a copy is unusable, the run emits an event and quantizes the base again. On two EPYC
cores, a Qwen2 of 0.5 B loads in 0.3 s instead of 25 s, and the tiny one in 0.1 s instead of 0.25 s.

Not covered: bit flips on the disk. Each load checks names, sizes and tensor headers, which detects incomplete writes.
Hashing 9 GB would take longer than the load, and the Hub's own cache is trusted in the same way.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError

from trainer.errors import UnusableInput
from trainer.model.load import compute_dtype, load_base
from trainer.model.memory import is_out_of_memory
from trainer.model.mixture import is_mixture
from trainer.recipe import Base
from trainer.run_dir import MANIFEST, RunDirectoryError, held_lock, new_folder, read_json, write_json

KEPT_DAYS = 30
"""A copy that was not loaded for this long is removed when the next one is made."""
SHARD_SIZE = "2GB"
"""Bytes copied from the device to host memory at a time."""


class Emit(Protocol):
    """Emits an event."""

    def __call__(self, event: str, /, **fields: Any) -> None: ...


def load_kept(base: Base, device: torch.device, emit: Emit) -> Any:
    """Load the base from its copy if there is one. Otherwise quantize it now, and write a copy.

    A mixture of experts has no copy: bitsandbytes cannot save its experts, so each start quantizes them.

    Raises:
        UnusableInput: the base itself cannot be loaded.
    """
    if base.quantization != "nf4" or base.revision is None or is_mixture(base):
        return load_base(base, device)
    facts = copy_facts(base, device)
    try:
        folder = copies_folder() / copy_name(base, facts)
        there = folder.exists()
    except (OSError, RuntimeError) as error:  # no permission, or no home folder
        emit("base_copy", state="not_made", path="", message=f"{error}. Every run quantizes the base")
        return load_base(base, device)
    if there:
        try:
            return load_copy(base, device, folder, facts)
        except (OSError, RunDirectoryError, UnusableInput, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            emit("base_copy", state="damaged", path=str(folder), message=f"{error}. It is made again")
    model = load_base(base, device)
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:  # one process per machine
        began = time.monotonic()
        try:
            written = keep_copy(model, folder, facts)
        except (OSError, SafetensorError, RunDirectoryError, ValueError) as error:
            emit("base_copy", state="not_made", path=str(folder), message=f"{error}. The next run quantizes again")
        else:
            seconds = round(time.monotonic() - began, 3)
            emit("base_copy", state="made", path=str(folder), bytes=written, seconds=seconds)
    return model


def copies_folder() -> Path:
    """Return the folder of copies, below XDG_CACHE_HOME or ~/.cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "codelupe" / "quantized"


def copy_facts(base: Base, device: torch.device) -> dict[str, Any]:
    """Return all facts that determine a copy's bytes."""
    return {
        "model": base.model,
        "revision": base.revision,
        "quantization": base.quantization,
        "double_quantization": base.double_quantization,
        "compute_dtype": str(compute_dtype(base, device)),
        "device": device.type,
        "versions": {package: version(package) for package in ("bitsandbytes", "transformers")},
    }


def copy_name(base: Base, facts: dict[str, Any]) -> str:
    """Return a readable name with a hash of the facts."""
    readable = re.sub(r"[^a-z0-9.]+", "-", Path(base.model).name.lower()).strip("-.")
    return f"{readable}-{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]}"


def load_copy(base: Base, device: torch.device, folder: Path, facts: dict[str, Any]) -> Any:
    """Load the model of a copy.

    Raises:
        RunDirectoryError: the manifest is missing, or does not match the files.
        UnusableInput: the copy cannot be loaded, or is not quantized as required.
    """
    check_copy(folder, facts)
    model = load_base(base, device, copy=folder)
    with contextlib.suppress(OSError):  # in a read-only cache, a process with write access cleans up
        os.utime(folder / MANIFEST)  # marks it as used
    return model


def check_copy(folder: Path, facts: dict[str, Any]) -> None:
    """Raises RunDirectoryError unless a copy has these facts and all files have the recorded sizes."""
    try:
        manifest = read_json(folder / MANIFEST)
        found, sizes = manifest["facts"], dict(manifest["bytes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunDirectoryError(f"{folder} has no readable {MANIFEST} ({error})") from error
    if found != facts or not sizes:
        raise RunDirectoryError(f"{folder} was made from {found}")
    if differing := [name for name, size in sizes.items() if _size(folder / name) != size]:
        raise RunDirectoryError(f"{', '.join(differing)} in {folder} changed in size or is missing")


def keep_copy(model: Any, folder: Path, facts: dict[str, Any]) -> int:
    """Write a copy of a newly quantized model, before any evaluation. Returns its size in bytes.

    Raises:
        OSError, SafetensorError: the disk is full or not writable.
        RunDirectoryError: another process is making a copy.
    """
    root = folder.parent
    root.mkdir(parents=True, exist_ok=True)
    with held_lock(root / "lock", wait_seconds=0):
        drop_unused(root)
        needed, free = 2 * model.get_memory_footprint(), shutil.disk_usage(root).free
        if free < needed:
            raise OSError(f"{free / 1e9:.1f} GB are free in {root}, but {needed / 1e9:.1f} GB are required")
        with new_folder(folder) as temporary:
            model.save_pretrained(temporary, max_shard_size=SHARD_SIZE)
            sizes = {path.name: path.stat().st_size for path in sorted(temporary.iterdir())}
            write_json(temporary / MANIFEST, {"bytes": sizes, "facts": facts})
    return sum(sizes.values())


def drop_unused(root: Path) -> None:
    """Remove incomplete copies of killed processes, and copies unused for KEPT_DAYS. Needs the lock."""
    oldest = time.time() - KEPT_DAYS * 86400
    for folder in [path for path in root.iterdir() if path.is_dir()]:
        manifest = folder / MANIFEST
        if folder.name.startswith(".") or not manifest.exists() or manifest.stat().st_mtime < oldest:
            shutil.rmtree(folder)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
