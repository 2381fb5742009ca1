"""Checkpoints: written atomically, verified before use, and without pickles.

step-000120/   adapter.safetensors random.safetensors state.json MANIFEST.json
               optimizer.safetensors   the optimizer's state, where each rank holds all of it
               optimizer/              the same where ranks divide it: a file for each (torch's distributed checkpoint)
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from trainer.events import Events
from trainer.fit.progress import Progress
from trainer.run_dir import RunDirectoryError, new_folder, read_json, verify_manifest, write_json, write_manifest

NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Everything needed to resume, on the CPU."""

    progress: Progress
    adapter: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    """As the optimizer's state_dict(). With `shards`, its numbers by trainer/fit/moments.py."""
    shards: Path | None = None
    """Folder with the state of an optimizer that the ranks divide. Saving moves it."""
    random: dict[str, torch.Tensor]
    """Generator states by name and rank: uint8."""


def save_checkpoint(folder: Path, checkpoint: Checkpoint, *, newest: int = 1) -> Path:
    """Write a checkpoint below `folder`, then remove all but the `newest` and the best step's. Returns its path."""
    path = checkpoint_path(folder, checkpoint.progress.step)
    tensors, scalars = flatten(checkpoint.optimizer)
    with new_folder(path) as temporary:
        save_file(checkpoint.adapter, temporary / "adapter.safetensors")
        if checkpoint.shards is None:
            save_file(tensors, temporary / "optimizer.safetensors")
        else:
            checkpoint.shards.rename(temporary / "optimizer")
        save_file(checkpoint.random, temporary / "random.safetensors")
        write_json(temporary / "state.json", {"progress": checkpoint.progress.as_json(), "optimizer": scalars})
        write_manifest(temporary)
    found = sorted(checkpoints(folder), key=_step_of)
    keep = {path, *found[-newest:], checkpoint_path(folder, checkpoint.progress.best_step)}
    for other in found:
        if other not in keep:
            shutil.rmtree(other)
    return path


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        RunDirectoryError: the checkpoint does not match its manifest, or cannot be read.
    """
    verify_manifest(path)
    try:
        state = read_json(path / "state.json")
        shards = path / "optimizer" if (path / "optimizer").is_dir() else None
        return Checkpoint(
            progress=Progress.from_json(state["progress"]),
            adapter=load_file(path / "adapter.safetensors"),
            optimizer=unflatten({} if shards else load_file(path / "optimizer.safetensors"), state["optimizer"]),
            shards=shards,
            random=load_file(path / "random.safetensors"),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunDirectoryError(f"{path} cannot be read ({error})") from error


def newest_checkpoint(folder: Path, on_damaged: Callable[[Path, str], None]) -> Checkpoint | None:
    """Return the newest intact checkpoint whose best step's checkpoint is intact too, or None."""
    for path in sorted(checkpoints(folder), key=_step_of, reverse=True):
        try:
            checkpoint = load_checkpoint(path)
            best = checkpoint_path(folder, checkpoint.progress.best_step)
            if checkpoint.progress.best_step not in (0, checkpoint.progress.step):
                verify_manifest(best)
        except RunDirectoryError as error:
            on_damaged(path, str(error))
        else:
            return checkpoint
    return None


def load_adapter(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """The adapter's weights at a checkpointed step."""
    path = checkpoint_path(folder, step)
    verify_manifest(path)
    return load_file(path / "adapter.safetensors")


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return the path of a step's checkpoint."""
    return folder / f"step-{step:06d}"


def checkpoints(folder: Path) -> Iterator[Path]:
    """Yield the checkpoints below a folder, unordered. Incomplete ones have another name."""
    if folder.exists():
        yield from (path for path in folder.iterdir() if NAME.fullmatch(path.name))


def _step_of(path: Path) -> int:
    match = NAME.fullmatch(path.name)
    assert match
    return int(match[1])


# --- nested state as flat tensors -----------------------------------------------------------------------------


def flatten(state: Mapping[Any, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Split a nested state into tensors by path, and JSON that refers to them."""
    tensors: dict[str, torch.Tensor] = {}

    def walk(value: Any, path: str) -> Any:
        match value:
            case torch.Tensor():
                tensors[path] = value.detach().to("cpu", copy=True).contiguous()
                return {"tensor": path}
            case Mapping():
                pairs = [[key, walk(item, f"{path}/{key}")] for key, item in value.items()]
                return {"pairs": pairs}
            case list() | tuple():
                return {"items": [walk(item, f"{path}/{i}") for i, item in enumerate(value)]}
            case None | bool() | int() | float() | str():
                return {"value": value}
            case _:
                raise TypeError(f"{path}: {type(value).__name__} cannot be stored in a checkpoint")

    return tensors, walk(state, "")


def unflatten(tensors: Mapping[str, torch.Tensor], shape: dict[str, Any]) -> Any:
    """Reverse `flatten`. Tuples become lists."""
    match shape:
        case {"tensor": path}:
            return tensors[path]
        case {"pairs": pairs}:
            return {key: unflatten(tensors, item) for key, item in pairs}
        case {"items": items}:
            return [unflatten(tensors, item) for item in items]
        case {"value": value}:
            return value
        case _:
            raise ValueError(f"no such entry in a checkpoint: {shape!r}")


def find_checkpoint(folder: Path, events: Events) -> Checkpoint | None:
    """Where to resume, with an event for each checkpoint that was skipped."""

    def on_damaged(path: Path, message: str) -> None:
        events.emit("checkpoint_damaged", path=f"{path.parent.name}/{path.name}", message=message)

    return newest_checkpoint(folder, on_damaged)
