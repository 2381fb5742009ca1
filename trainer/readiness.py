"""What a whole training takes of a machine: host memory, cards and disk. Checked before hours are spent."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from trainer.errors import UnusableInput
from trainer.finding import Finding
from trainer.model.load import compute_dtype
from trainer.model.shapes import architecture
from trainer.plan.cards import GIB
from trainer.plan.model import Model, read_model
from trainer.plan.sharding import unsharded
from trainer.plan.static import sizes_of, static_lines
from trainer.ranks import ranks_for
from trainer.recipe import Recipe, step_samples

TRY = "codelupe train --smoke …  # tries the recipe with a toy model"


def readiness_findings(recipe: Recipe, folder: Path) -> Iterator[Finding]:
    """Check the number of cards, and memory and disk for all phases of a recipe.

    Args:
        folder: where the training writes. It need not exist.
    """
    yield cards_finding(recipe, torch.cuda.device_count() if torch.cuda.is_available() else 0)
    try:
        model = read_model(architecture(recipe.base)[0], recipe.lora)
    except UnusableInput as error:
        yield Finding(check="size", state="note", said=f"unknown, because the base cannot be planned: {error}")
        return
    if not torch.cuda.is_available():
        yield host_finding(recipe, model, available_bytes())
    yield disk_finding(recipe, model, folder)


def cards_finding(recipe: Recipe, cards: int) -> Finding:
    """Compare the number of cards with that of the recipe. Fewer cards take longer, for the same result."""
    wanted = recipe.distributed.cards
    if recipe.distributed.launcher == "ray":
        said = f"those of the Ray cluster at {recipe.distributed.address}, which each start looks at"
        return Finding(check="cards", state="ok", said=said)
    if recipe.distributed.launcher == "torchrun":
        number = ranks_for(recipe, cards)
        said = f"{cards or 'no'} card{'s' * (cards != 1)}; processes that train: {number}"
        if number < cards:
            return Finding(check="cards", state="note", said=f"{said}. {_why_fewer(recipe)}")
        return Finding(check="cards", state="ok" if number in (cards, wanted) else "note", said=said)
    if cards > wanted == 1:
        said = f"one of {cards} cards trains. distributed.launcher: torchrun uses all"
        return Finding(check="cards", state="note", said=said)
    if cards == wanted or (cards == 0 and wanted == 1):
        return Finding(
            check="cards", state="ok", said=f"{cards or 'no'} card{'s' * (cards != 1)}, as the recipe expects"
        )
    more = wanted // recipe.distributed.shared_by(wanted)
    accumulates = f", and accumulates {more} times as many samples for a step" if more > 1 else ""
    said = f"{cards} of {wanted} cards: one process trains{accumulates}. distributed.launcher: torchrun uses more cards"
    return Finding(check="cards", state="note", said=said)


def _why_fewer(recipe: Recipe) -> str:
    """Return why torchrun leaves cards without work."""
    wanted = recipe.distributed.processes
    if wanted == "auto":
        return f"A step of {step_samples(recipe)} samples cannot be shared equally by more of them"
    return f"distributed.processes: {wanted} leaves the others without work. auto uses all"


def host_finding(recipe: Recipe, model: Model, available: int) -> Finding:
    """Check that weights, adapter, gradients and optimizer fit into the host's memory, for training without a card."""
    element = 2 if compute_dtype(recipe.base, torch.device("cpu")) == torch.bfloat16 else 4
    needed = sum(line.bytes for line in static_lines(model, unsharded(recipe, 1), sizes_of(recipe, element=element)))
    said = (
        f"{needed / GIB:.1f} GiB of weights, gradients and optimizer, "
        f"{available / GIB:.1f} GiB of host memory are available, and there is no card"
    )
    if needed > available:
        return Finding(check="host memory", state="failed", said=said, mend=TRY)
    return Finding(check="host memory", state="ok", said=said)


def disk_finding(recipe: Recipe, model: Model, folder: Path) -> Finding:
    """Check the space for checkpoints and adapters of all phases."""
    sizes = sizes_of(recipe, element=2)
    adapter = sum(line.bytes for line in static_lines(model, recipe, sizes) if line.name.startswith("adapter"))
    optimizer = sum(line.bytes for line in static_lines(model, recipe, sizes) if line.name.startswith("optimizer"))
    checkpoints = recipe.training.keep_checkpoints + 2  # the best one, and the one that is being written
    each = checkpoints * (adapter + optimizer) + 2 * adapter  # the candidate, and its published copy
    needed = each * max(1, len(recipe.phases))
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(place).free
    said = f"{needed / GIB:.1f} GiB for checkpoints and adapters, {free / GIB:.1f} GiB are free in {place}"
    if free < needed:
        mend = "free space, choose another disk with --to, or lower training.keep_checkpoints"
        return Finding(check="space", state="failed", said=said, mend=mend)
    return Finding(check="space", state="ok", said=said)


def available_bytes() -> int:
    """Return the memory that a new process can have, without swap."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):  # not Linux
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
