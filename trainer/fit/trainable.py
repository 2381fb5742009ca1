"""Makes a loaded base trainable: adapter, checkpointing, loss and optimizer. Needs no data and no samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from trainer.fit.optimizer import make_optimizer
from trainer.model.attention import choose_kernel
from trainer.model.checkpointing import checkpoint_layers
from trainer.model.compiled import compile_layers
from trainer.model.fused import fuse
from trainer.model.load import compute_dtype
from trainer.model.lora import add_adapter
from trainer.model.routing import routing_of
from trainer.model.sequence import ALONE, SharedBy
from trainer.model.step import LossModel, check_head
from trainer.recipe import Recipe


def make_trainable(
    base: Any,
    recipe: Recipe,
    device: torch.device,
    *,
    parent: Path | None,
    seed: int,
    run_id: int = 0,
    shared: SharedBy = ALONE,
) -> tuple[LossModel, torch.optim.Optimizer]:
    """Add adapter, checkpointing and loss to a loaded base, and create its optimizer.

    Args:
        recipe: recipe with all memory settings resolved
        shared: the processes that share each pack
    """
    training = recipe.training
    dtype = getattr(torch, training.adapter_dtype)
    adapted = add_adapter(base, recipe.lora, parent=parent, seed=seed, dtype=dtype, moe=recipe.moe)
    check_head(adapted)
    fuse(adapted, compiled=training.compile)
    if training.compile:
        compile_layers(adapted)
    checkpoint_layers(adapted, training.checkpointing, offload=training.offload_checkpoints == "always")
    optimizer = make_optimizer(adapted.parameters(), training, draws=(seed, run_id))
    kernel = choose_kernel(recipe.base, device, compute_dtype(recipe.base, device))
    routing = routing_of(adapted.get_base_model(), recipe.moe)
    smoothing = training.label_smoothing
    return LossModel(adapted, kernel=kernel, label_smoothing=smoothing, routing=routing, shared=shared), optimizer
