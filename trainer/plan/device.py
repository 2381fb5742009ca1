"""Resolves `auto` in a recipe for the present device."""

from __future__ import annotations

from dataclasses import replace

import torch
from accelerate.utils import gather_object

from trainer.model.shapes import architecture
from trainer.plan.cards import CARDS, card_named
from trainer.plan.choose import Plan, fastest_fitting, possible_plans, smallest_plan, with_choice
from trainer.plan.memory import CUDA_BYTES
from trainer.plan.model import NotPlanned, read_model
from trainer.plan.sharding import trained_by
from trainer.recipe import Recipe
from trainer.world_size import world_size


def fitted(recipe: Recipe, device: torch.device) -> tuple[Recipe, Plan | None]:
    """Resolve all memory settings that are `auto`. Returns the recipe, and the plan if one was used.

    On a GPU, all ranks use the fastest plan that fits the free memory. If none fits, they use the one with the least
    memory; the fit halves its micro-batches if memory runs out. On a CPU nothing is recomputed.

    Raises:
        UnusableInput: the base's config is not available.
    """
    training = recipe.training
    if "auto" not in (training.checkpointing, training.offload_checkpoints):
        return recipe, None
    if device.type != "cuda":
        return _decided(recipe, checkpointing="none"), None
    try:
        model = read_model(architecture(recipe.base)[0], recipe.lora)
    except NotPlanned:
        return _decided(recipe, checkpointing="full"), None
    free, _ = torch.cuda.mem_get_info(device)
    least = min(gather_object([free])) + CUDA_BYTES  # the CUDA context is allocated already
    trained = trained_by(recipe, world_size())
    plans = possible_plans(model, trained, CARDS[card_named(torch.cuda.get_device_name(device))])
    plan = fastest_fitting(plans, least) or smallest_plan(plans)
    return with_choice(recipe, plan), plan


def _decided(recipe: Recipe, *, checkpointing: str) -> Recipe:
    """Resolve `auto` without a plan."""
    training = recipe.training
    policy = checkpointing if training.checkpointing == "auto" else training.checkpointing
    offload = "never" if training.offload_checkpoints == "auto" or policy == "none" else training.offload_checkpoints
    return replace(recipe, training=replace(training, checkpointing=policy, offload_checkpoints=offload))
