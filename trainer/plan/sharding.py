"""Divides a plan's memory among several GPUs, as ZeRO does (Rajbhandari et al. 2020, section 5).

ddp     every card holds everything; gradients are summed in pieces, each of which is copied
zero2   each card holds its share of gradients and optimizer
zero3   (and fsdp2) also its share of weights and adapter; the layer in use is gathered from all cards
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from trainer.plan.exchange import BUCKET_ELEMENTS
from trainer.plan.model import Model
from trainer.plan.static import ADAPTER_BYTES, Line
from trainer.recipe import Distributed, Recipe
from trainer.world_size import world_size

CHOSEN_FROM = ("ddp", "fsdp2")
"""Strategies that `auto` chooses from. zero2 and zero3 need DeepSpeed, and are taken by name only."""
DIVIDED = ("gradients", "optimizer")
"""Prefixes of the lines that zero2 divides."""
WHOLE = ("quantization",)
"""Prefixes of the lines that no strategy divides: bitsandbytes keeps a matrix's constants beside it."""


def strategies(recipe: Recipe) -> Iterator[Recipe]:
    """Yield the recipe with each strategy that a plan may have: its own, or those that `auto` chooses from."""
    chosen, cards = recipe.distributed.strategy, recipe.distributed.cards
    for strategy in ("ddp",) if cards == 1 else CHOSEN_FROM if chosen == "auto" else (chosen,):
        yield replace(recipe, distributed=replace(recipe.distributed, strategy=strategy))


def training_strategy(recipe: Recipe) -> str:
    """Return ddp, fsdp2, zero2 or zero3: what this run's processes train with. `auto` is ddp, which needs nothing else
    and goes on when a process runs out of memory."""
    chosen = recipe.distributed.strategy
    return "ddp" if world_size() == 1 or chosen == "auto" else chosen


def trained_by(recipe: Recipe, processes: int) -> Recipe:
    """Return the recipe as `processes` cards train it."""
    if recipe.distributed.strategy in ("auto", "ddp"):
        return unsharded(recipe, processes)
    return _with(recipe, processes, recipe.distributed.strategy)


def unsharded(recipe: Recipe, processes: int) -> Recipe:
    """Return the recipe as it is trained by `processes` cards, each of which holds everything."""
    return _with(recipe, processes, "ddp")


def _with(recipe: Recipe, processes: int, strategy: str) -> Recipe:
    sequence = recipe.distributed.shared_by(processes)
    return replace(recipe, distributed=Distributed(processes=processes, strategy=strategy, sequence=sequence))


def shard(lines: list[Line], model: Model, recipe: Recipe) -> list[Line]:
    """Return what one card holds of the static lines."""
    processes, strategy = recipe.distributed.cards, recipe.distributed.strategy
    if processes == 1:
        return lines
    gradients = sum(line.bytes for line in lines if line.name.startswith("gradients"))
    piece = BUCKET_ELEMENTS * ADAPTER_BYTES[recipe.training.adapter_dtype]
    match strategy:
        case "ddp":
            return [*lines, Line(name="gradients of one piece", bytes=min(gradients, piece), kind="static")]
        case "zero2":
            return [_share(line, processes) if line.name.startswith(DIVIDED) else line for line in lines]
        case _:
            gathered = Line(name="gathered layer", bytes=_largest_unit(lines, model), kind="static")
            divided = [line if line.name.startswith(WHOLE) else _share(line, processes) for line in lines]
            return [*divided, gathered]


def _share(line: Line, processes: int) -> Line:
    return replace(line, bytes=-(-line.bytes // processes))


def _largest_unit(lines: list[Line], model: Model) -> int:
    """Return the bytes of what is gathered at once: a layer with its adapter, or the embeddings, or the head."""
    by_name = {line.name: line.bytes for line in lines}
    ends = [by_name.get(name, 0) for name in ("embeddings", "output head")]
    of_layers = sum(size for name, size in by_name.items() if name.startswith(("weights", "adapter")))
    return max(of_layers // model.layers, *ends)
