"""Takes a fit's state to a checkpoint and back."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from peft import set_peft_model_state_dict

from trainer.fit.checkpoint import Checkpoint, load_adapter, save_checkpoint
from trainer.fit.context import FitContext
from trainer.fit.progress import Progress
from trainer.model.lora import adapter_weights


def save_state(context: FitContext, progress: Progress) -> None:
    """Save a checkpoint of all ranks."""
    states = gather_object([_random_state(context.accelerator)])
    if context.accelerator.is_main_process:
        checkpoint = Checkpoint(
            progress=progress,
            adapter=adapter_weights(context.adapted),
            optimizer=_inner(context.optimizer).state_dict(),
            random={name: state for rank in states for name, state in rank.items()},
        )
        path = save_checkpoint(context.checkpoints, checkpoint, newest=context.recipe.training.keep_checkpoints)
        context.events.emit("checkpoint", step=progress.step, path=f"{path.parent.name}/{path.name}")
    context.accelerator.wait_for_everyone()


def restore_state(context: FitContext, checkpoint: Checkpoint) -> Progress:
    """Load a checkpoint into model, optimizer and random generators. Returns its progress."""
    set_peft_model_state_dict(context.adapted, checkpoint.adapter)
    _inner(context.optimizer).load_state_dict(checkpoint.optimizer)
    rank = context.accelerator.process_index
    torch.set_rng_state(checkpoint.random[f"cpu.{rank}"])
    if context.accelerator.device.type == "cuda":
        torch.cuda.set_rng_state(checkpoint.random[f"cuda.{rank}"])
    return checkpoint.progress


def load_weights(context: FitContext, step: int) -> None:
    """Load the adapter's weights of a checkpointed step into the model."""
    set_peft_model_state_dict(context.adapted, load_adapter(context.checkpoints, step))


def _inner(optimizer: Any) -> Any:
    """Return the optimizer inside accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)


def _random_state(accelerator: Accelerator) -> dict[str, torch.Tensor]:
    rank = accelerator.process_index
    state = {f"cpu.{rank}": torch.get_rng_state()}
    if accelerator.device.type == "cuda":
        state[f"cuda.{rank}"] = torch.cuda.get_rng_state()
    return state
