"""The optimizers by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import bitsandbytes as bnb
import torch

from trainer.fit.rounding import RoundedAdamW8bit, RoundedPagedAdamW8bit
from trainer.recipe import Training


def _adamw_8bit(parameters: list[torch.nn.Parameter], training: Training) -> torch.optim.Optimizer:
    """Paged on a GPU: its state moves to host memory when the card is full."""
    rounded = training.adapter_dtype == "bfloat16"
    cls: type[torch.optim.Optimizer]
    if parameters[0].device.type == "cuda":
        cls = RoundedPagedAdamW8bit if rounded else bnb.optim.PagedAdamW8bit
    else:
        cls = RoundedAdamW8bit if rounded else bnb.optim.AdamW8bit
    return cls(parameters, lr=training.learning_rate, weight_decay=training.weight_decay)


def _adamw(parameters: list[torch.nn.Parameter], training: Training) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=training.learning_rate, weight_decay=training.weight_decay)


OPTIMIZERS: dict[str, Callable[[list[torch.nn.Parameter], Training], torch.optim.Optimizer]] = {
    "adamw_8bit": _adamw_8bit,
    "adamw": _adamw,
}


def make_optimizer(
    parameters: Iterable[torch.nn.Parameter], training: Training, *, draws: tuple[int, ...] = ()
) -> torch.optim.Optimizer:
    """Create an optimizer for the trainable parameters.

    Args:
        draws: seed of stochastic rounding. Equal on all ranks and after a resume, different in every run
    """
    optimizer = OPTIMIZERS[training.optimizer]([p for p in parameters if p.requires_grad], training)
    if isinstance(optimizer, RoundedAdamW8bit | RoundedPagedAdamW8bit):
        optimizer.draws = draws
    return optimizer


def set_learning_rate(optimizer: Any, rate: float) -> None:
    """Set the learning rate of all groups."""
    for group in optimizer.param_groups:
        group["lr"] = rate
