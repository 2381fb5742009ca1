"""A copy of the base in 4 bits, kept beside the Hub's cache: later runs map it into memory and quantize nothing.

    <cache>/codelupe/quantized/qwen2.5-coder-14b-instruct-3f9a…/   config.json  *.safetensors  MANIFEST.json last

A copy belongs to one base@revision, setting, kind of device and version of the libraries that made it. It appears
whole or not at all, and nothing depends on it: whatever is wrong with it is an event, and the base is quantized anew.
On two cores of an EPYC a Qwen2 of 0.5 B loads in 0.3 s instead of 25, the tiny one in 0.1 instead of 0.25.

Not covered: a bit that turns over on the disk later. Names, sizes and the tensors' headers are checked at every load,
since a write that broke off cannot pass those; a hash of 9 GB would take longer than the load itself, and the Hub's own
cache is trusted in the same way.
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
from trainer.recipe import Base
from trainer.run_dir import MANIFEST, RunDirectoryError, held_lock, new_folder, read_json, write_json

KEPT_DAYS = 30
"""A copy that no run has loaded for so long goes when the next one is made."""
SHARD_SIZE = "2GB"
"""What is copied from the device into host memory at a time."""


class Tell(Protocol):
    """How events are emitted."""

    def __call__(self, event: str, /, **fields: Any) -> None: ...


def load_kept(base: Base, device: torch.device, tell: Tell) -> Any:
    """The base as `load_base` gives it: from its copy where there is one, else quantized now, and then copied.

    Raises:
        UnusableInput: the base itself cannot be loaded.
    """
    if base.quantization != "nf4" or base.revision is None:
        return load_base(base, device)
    facts = copy_facts(base, device)
    try:
        folder = copies_folder() / copy_name(base, facts)
        there = folder.exists()
    except (OSError, RuntimeError) as error:  # a folder that we may not look into, or no home at all
        tell("base_copy", state="not_made", path="", message=f"{error}; every run quantizes")
        return load_base(base, device)
    if there:
        try:
            return load_copy(base, device, folder, facts)
        except (OSError, RunDirectoryError, UnusableInput, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            tell("base_copy", state="damaged", path=str(folder), message=f"{error}; it is made again")
    model = load_base(base, device)
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:  # one process of a machine
        began = time.monotonic()
        try:
            written = keep_copy(model, folder, facts)
        except (OSError, SafetensorError, RunDirectoryError, ValueError) as error:
            tell("base_copy", state="not_made", path=str(folder), message=f"{error}; the next run quantizes again")
        else:
            seconds = round(time.monotonic() - began, 3)
            tell("base_copy", state="made", path=str(folder), bytes=written, seconds=seconds)
    return model


def copies_folder() -> Path:
    """Where copies are: below XDG_CACHE_HOME, or ~/.cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "codelupe" / "quantized"


def copy_facts(base: Base, device: torch.device) -> dict[str, Any]:
    """All that decides a copy's bits."""
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
    """The base's name for people, and a hash of the facts."""
    readable = re.sub(r"[^a-z0-9.]+", "-", Path(base.model).name.lower()).strip("-.")
    return f"{readable}-{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]}"


def load_copy(base: Base, device: torch.device, folder: Path, facts: dict[str, Any]) -> Any:
    """The model of a copy.

    Raises:
        RunDirectoryError: its manifest is missing, or not what is there.
        UnusableInput: it cannot be loaded, or does not hold what it should.
    """
    check_copy(folder, facts)
    model = load_base(base, device, copy=folder)
    with contextlib.suppress(OSError):  # a cache that we may only read is tidied by whoever may write there
        os.utime(folder / MANIFEST)  # it is in use
    return model


def check_copy(folder: Path, facts: dict[str, Any]) -> None:
    """Raises RunDirectoryError unless a copy's facts are these and every file has the bytes that were written."""
    try:
        manifest = read_json(folder / MANIFEST)
        found, sizes = manifest["facts"], dict(manifest["bytes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunDirectoryError(f"{folder} has no readable {MANIFEST} ({error})") from error
    if found != facts or not sizes:
        raise RunDirectoryError(f"{folder} was made from {found}")
    if differing := [name for name, size in sizes.items() if _size(folder / name) != size]:
        raise RunDirectoryError(f"{', '.join(differing)} in {folder} changed in size or went missing")


def keep_copy(model: Any, folder: Path, facts: dict[str, Any]) -> int:
    """Write a copy of a model that was just quantized, before any evaluation. Returns its bytes.

    Raises:
        OSError, SafetensorError: the disk is full or cannot be written.
        RunDirectoryError: another process is making a copy now.
    """
    root = folder.parent
    root.mkdir(parents=True, exist_ok=True)
    with held_lock(root / "lock", wait_seconds=0):
        drop_unused(root)
        needed, free = 2 * model.get_memory_footprint(), shutil.disk_usage(root).free
        if free < needed:
            raise OSError(f"{free / 1e9:.1f} GB are free in {root}, and {needed / 1e9:.1f} GB should be")
        with new_folder(folder) as temporary:
            model.save_pretrained(temporary, max_shard_size=SHARD_SIZE)
            sizes = {path.name: path.stat().st_size for path in sorted(temporary.iterdir())}
            write_json(temporary / MANIFEST, {"bytes": sizes, "facts": facts})
    return sum(sizes.values())


def drop_unused(root: Path) -> None:
    """Remove what killed processes left half-written, and copies unused for KEPT_DAYS. Needs the lock."""
    oldest = time.time() - KEPT_DAYS * 86400
    for folder in [path for path in root.iterdir() if path.is_dir()]:
        manifest = folder / MANIFEST
        if folder.name.startswith(".") or not manifest.exists() or manifest.stat().st_mtime < oldest:
            shutil.rmtree(folder)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
