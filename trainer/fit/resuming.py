"""Takes a fit's state to a checkpoint and back."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from trainer.fit.checkpoint import Checkpoint, load_adapter, save_checkpoint
from trainer.fit.context import FitContext
from trainer.fit.moments import load_moments, save_moments, scalars_of, set_moments, whole_moments
from trainer.fit.progress import Progress
from trainer.model.lora import adapter_weights
from trainer.model.shards import set_adapter_weights


def save_state(context: FitContext, progress: Progress) -> None:
    """Save a checkpoint of all ranks."""
    states = gather_object([_random_state(context.accelerator)])
    adapter, optimizer, shards = adapter_weights(context.adapted), _inner(context.optimizer), None
    if context.together.sharded:
        shards = context.checkpoints / ".optimizer.tmp"
        save_moments(shards, context.together, optimizer)
    if context.accelerator.is_main_process:
        checkpoint = Checkpoint(
            progress=progress,
            adapter=adapter,
            optimizer=optimizer.state_dict() if shards is None else scalars_of(optimizer),
            shards=shards,
            random={name: state for rank in states for name, state in rank.items()},
        )
        path = save_checkpoint(context.checkpoints, checkpoint, newest=context.recipe.training.keep_checkpoints)
        context.events.emit("checkpoint", step=progress.step, path=f"{path.parent.name}/{path.name}")
    context.accelerator.wait_for_everyone()


def restore_state(context: FitContext, checkpoint: Checkpoint) -> Progress:
    """Load a checkpoint into model, optimizer and random generators. Returns its progress."""
    set_adapter_weights(context.adapted, checkpoint.adapter)
    context.together.weights_changed()
    optimizer = _inner(context.optimizer)
    if checkpoint.shards is not None:
        set_moments(
            context.together, optimizer, load_moments(checkpoint.shards, context.together), checkpoint.optimizer
        )
    elif context.together.sharded:
        set_moments(context.together, optimizer, *whole_moments(checkpoint.optimizer))
    else:
        optimizer.load_state_dict(checkpoint.optimizer)
    rank = context.accelerator.process_index
    if f"cpu.{rank}" not in checkpoint.random:  # fewer processes wrote it: this one goes on from its seed
        return checkpoint.progress
    torch.set_rng_state(checkpoint.random[f"cpu.{rank}"])
    if context.accelerator.device.type == "cuda" and f"cuda.{rank}" in checkpoint.random:
        torch.cuda.set_rng_state(checkpoint.random[f"cuda.{rank}"])
    return checkpoint.progress


def load_weights(context: FitContext, step: int) -> None:
    """Load the adapter's weights of a checkpointed step into the model."""
    set_adapter_weights(context.adapted, load_adapter(context.checkpoints, step))
    context.together.weights_changed()


def _inner(optimizer: Any) -> Any:
    """Return the optimizer inside accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)


def _random_state(accelerator: Accelerator) -> dict[str, torch.Tensor]:
    rank = accelerator.process_index
    state = {f"cpu.{rank}": torch.get_rng_state()}
    if accelerator.device.type == "cuda":
        state[f"cuda.{rank}"] = torch.cuda.get_rng_state()
    return state
