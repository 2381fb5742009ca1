"""The optimizers by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import bitsandbytes as bnb
import torch
from transformers.optimization import Adafactor

from trainer.fit.rounding import RoundedAdamW8bit, RoundedPagedAdamW8bit
from trainer.recipe import Training

Parameters = list[torch.nn.Parameter]


def _adamw_8bit(parameters: Parameters, training: Training) -> torch.optim.Optimizer:
    """Paged on a GPU: its state moves to host memory when the card is full."""
    rounded = training.adapter_dtype == "bfloat16"
    cls: type[torch.optim.Optimizer]
    if parameters[0].device.type == "cuda":
        cls = RoundedPagedAdamW8bit if rounded else bnb.optim.PagedAdamW8bit
    else:
        cls = RoundedAdamW8bit if rounded else bnb.optim.AdamW8bit
    return cls(parameters, **_of_adamw(training))


def _adamw(parameters: Parameters, training: Training) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, **_of_adamw(training))


def _adamw_fused(parameters: Parameters, training: Training) -> torch.optim.Optimizer:
    """One kernel updates all parameters."""
    return torch.optim.AdamW(parameters, **_of_adamw(training), fused=True)


def _paged_adamw(parameters: Parameters, training: Training) -> torch.optim.Optimizer:
    """In 32 bits. On a CPU, bitsandbytes uses ordinary memory, and warns."""
    return bnb.optim.PagedAdamW32bit(parameters, **_of_adamw(training))


def _paged_adamw_8bit(parameters: Parameters, training: Training) -> torch.optim.Optimizer:
    """What adamw_8bit is on a GPU."""
    return bnb.optim.PagedAdamW8bit(parameters, **_of_adamw(training))


def _adafactor(parameters: Parameters, training: Training) -> torch.optim.Optimizer:
    """Without momentum, at the recipe's rate.

    transformers' version, because torch's always multiplies the rate by the parameter's own size. A new adapter's B is
    all zeros, so that it would hardly move.
    """
    return Adafactor(
        parameters,
        lr=training.learning_rate,
        weight_decay=training.weight_decay,
        scale_parameter=False,
        relative_step=False,
        warmup_init=False,
    )


def _sgd(parameters: Parameters, training: Training) -> torch.optim.Optimizer:
    """With momentum beta1. Its weight decay is part of the gradient, unlike AdamW's."""
    return torch.optim.SGD(
        parameters, lr=training.learning_rate, momentum=training.beta1, weight_decay=training.weight_decay
    )


def _of_adamw(training: Training) -> dict[str, Any]:
    return {
        "lr": training.learning_rate,
        "betas": (training.beta1, training.beta2),
        "eps": training.epsilon,
        "weight_decay": training.weight_decay,
    }


OPTIMIZERS: dict[str, Callable[[Parameters, Training], torch.optim.Optimizer]] = {
    "adamw_8bit": _adamw_8bit,
    "adamw": _adamw,
    "adamw_fused": _adamw_fused,
    "paged_adamw": _paged_adamw,
    "paged_adamw_8bit": _paged_adamw_8bit,
    "adafactor": _adafactor,
    "sgd": _sgd,
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
