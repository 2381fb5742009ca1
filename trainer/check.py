"""The first stage: verifies a run directory against its manifest. (no torch)"""

from __future__ import annotations

import importlib.util
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import UnusableInput
from trainer.recipe import Recipe, share_equally, step_samples
from trainer.recipe_file import load_recipe
from trainer.run_dir import MANIFEST, RunDirectory, RunDirectoryError, sha256_file, verify_manifest
from trainer.samples.build import check_builders
from trainer.world_size import world_size

REQUIRED_FILES = ("recipe.yaml", "rows.jsonl", "held_out.jsonl")


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A run's inputs, verified."""

    recipe: Recipe
    run_id: int
    seed: int
    parent: Path | None
    """The adapter folder to continue from: the published adapter, or an unpublished candidate (the trunk)."""
    current: Path | None
    """The published adapter, to compare with."""
    trunk: frozenset[int]
    """The runs whose candidate became the trunk that `parent` is. Empty if `parent` is published."""
    parent_version: int | None
    phase: str | None = None
    """The phase of a curriculum that the rows belong to."""


def check_run(directory: RunDirectory) -> Checked:
    """Verify a run's inputs and its parent against their manifests, and the recipe against the manifest.

    Raises:
        UnusableInput: an input is missing, changed or contradictory.
    """
    packed = directory.rows.with_name(f"{directory.rows.name}.gz")
    if packed.exists() and not directory.rows.exists():
        raise UnusableInput(
            f"{directory.root} is a settled run, and its rows are packed ({packed.name}). "
            f"Train it again in a fresh folder with `codelupe replay {directory.root}`"
        )
    try:
        manifest = verify_manifest(directory.root)
    except RunDirectoryError as error:
        raise UnusableInput(f"{error}. Claim the rows again. Never edit inputs in place") from error
    present = [name for name in (*REQUIRED_FILES, "replay.jsonl") if (directory.root / name).exists()]
    if unlisted := sorted({*REQUIRED_FILES, *present} - set(manifest["files"])):
        raise UnusableInput(f"{directory.manifest} does not list {', '.join(unlisted)}")
    recipe = load_recipe(directory.recipe)
    check_builders(recipe.data)
    check_world(recipe, world_size())
    check_compiler(recipe)
    check_deepspeed(recipe, world_size())
    base = {"model": recipe.base.model, "revision": recipe.base.revision}
    if recipe.base.revision is None:
        raise UnusableInput(
            f"{directory.recipe}: base.revision is not pinned. Run `python -m trainer prepare` to resolve it"
        )
    if _fact(manifest, "base", dict, directory) != base:
        raise UnusableInput(f"{directory.recipe} has the base {base}, but {MANIFEST} has {manifest['base']}")
    trunk = frozenset(_trunk(manifest, directory))
    parent = _checked_adapter(directory.parent, manifest.get("parent_manifest_sha256"), "parent")
    current = _checked_adapter(directory.current, manifest.get("current_manifest_sha256"), "current")
    return Checked(
        recipe=recipe,
        run_id=_fact(manifest, "run_id", int, directory),
        seed=_fact(manifest, "seed", int, directory),
        parent=parent,
        current=current if trunk else parent,
        trunk=trunk,
        parent_version=manifest.get("parent_version"),
        phase=manifest.get("phase"),
    )


def check_world(recipe: Recipe, world: int) -> None:
    """Raises UnusableInput unless `world` processes get equally many whole samples of an optimizer step."""
    if share_equally(recipe, world):
        return
    size, sequence = step_samples(recipe), recipe.distributed.sequence
    fitting = [number for number in range(1, min(size * sequence, 64) + 1) if share_equally(recipe, number)]
    together = f", {sequence} of which share each pack (distributed.sequence)" if sequence > 1 else ""
    raise UnusableInput(
        f"An optimizer step takes {size} samples (training.batch_size × training.gradient_accumulation_steps × "
        f"distributed.processes{' / distributed.sequence' if sequence > 1 else ''}), which {world} "
        f"process{'es' if world > 1 else ''} cannot share equally{together}. "
        f"Start {' or '.join(str(number) for number in fitting)} of them, or change one of the values"
    )


def check_compiler(recipe: Recipe) -> None:
    """Raises UnusableInput if the recipe compiles layers, and this machine has no C++ compiler."""
    wanted = [os.environ.get("CXX", "g++"), "clang++"]
    if recipe.training.compile and not any(shutil.which(name) for name in wanted):
        raise UnusableInput(
            f"training.compile needs a C++ compiler, and neither {' nor '.join(wanted)} is installed. "
            "Install one (`apt-get install g++`), or set compile: false"
        )


def check_deepspeed(recipe: Recipe, world: int) -> None:
    """Raises UnusableInput if several processes shall train with DeepSpeed, and it is not installed."""
    strategy = recipe.distributed.strategy
    if world > 1 and strategy in ("zero2", "zero3") and importlib.util.find_spec("deepspeed") is None:
        raise UnusableInput(
            f"distributed.strategy: {strategy} needs DeepSpeed, which is not installed. "
            "Install it (`pip install 'codelupe[deepspeed]'`), or use fsdp2"
        )


def check_launcher(recipe: Recipe) -> None:
    """Raises UnusableInput if the recipe's launcher is not installed on this machine."""
    if recipe.distributed.launcher == "ray" and importlib.util.find_spec("ray") is None:
        raise UnusableInput(
            "distributed.launcher: ray needs Ray Train, which is not installed. Install it here and on the machines of "
            "the cluster with `pip install 'codelupe[ray]'`, or choose another launcher"
        )


def _trunk(manifest: dict[str, Any], directory: RunDirectory) -> list[int]:
    found = manifest.get("trunk", [])
    if not isinstance(found, list) or not all(type(run_id) is int for run_id in found):
        raise UnusableInput(f"{directory.manifest}: trunk is {found!r}, not a list of run numbers")
    return found


def _checked_adapter(link: Path, expected: str | None, which: str) -> Path | None:
    """Return the folder behind a link, verified. None if there is no link and none is expected."""
    if not link.exists():
        if expected is not None or link.is_symlink():
            raise UnusableInput(f"{link} is missing, but {MANIFEST} names a {which} adapter")
        return None
    if expected is None:
        raise UnusableInput(f"{link} exists, but {MANIFEST} names no {which} adapter")
    folder = link.resolve()
    try:
        verify_manifest(folder)
    except RunDirectoryError as error:
        raise UnusableInput(f"the {which} adapter cannot be used: {error}") from error
    if (found := sha256_file(folder / MANIFEST)) != expected:
        raise UnusableInput(
            f"the {which} adapter {folder} has manifest {found}, but the run was claimed for {expected}"
        )
    return folder


def _fact(manifest: dict[str, Any], name: str, kind: type, directory: RunDirectory) -> Any:
    value = manifest.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UnusableInput(f"{directory.manifest}: {name} is {value!r}")
    return value
