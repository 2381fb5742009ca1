"""How the ranks of a fit divide its model and optimizer: one function for each strategy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator

from trainer.fit.together import Together
from trainer.fit.zero import make_zero
from trainer.model.shards import shard_model
from trainer.model.step import LossModel
from trainer.recipe import Training


@dataclass(frozen=True, kw_only=True)
class Divided:
    """A model and its optimizer, as the ranks use them."""

    model: Any
    """What computes the loss."""
    optimizer: Any
    together: Together


def divide(
    strategy: str,
    model: LossModel,
    optimizer: Any,
    accelerator: Accelerator,
    training: Training,
    draws: tuple[int, ...],
) -> Divided:
    """Prepare a model and its optimizer for all ranks.

    Args:
        strategy: a name in STRATEGIES
        draws: seed of stochastic rounding
    """
    prepared = accelerator.prepare_model(model, evaluation_mode=True)  # gradients are summed in Together
    return STRATEGIES[strategy](prepared, optimizer, accelerator, training, draws)


def _ddp(model: Any, optimizer: Any, accelerator: Accelerator, _training: Training, _draws: tuple[int, ...]) -> Divided:
    together = Together(model, accelerator)
    return Divided(model=model, optimizer=accelerator.prepare_optimizer(optimizer), together=together)


def _fsdp2(
    model: Any, _optimizer: Any, accelerator: Accelerator, training: Training, draws: tuple[int, ...]
) -> Divided:
    together = Together(model, accelerator, sharded=True)
    shard_model(model, accelerator.device)
    optimizer = together.share_optimizer(training, draws=draws)
    return Divided(model=model, optimizer=accelerator.prepare_optimizer(optimizer), together=together)


def _zero(stage: int) -> Callable[..., Divided]:
    def divided(model: Any, optimizer: Any, accelerator: Accelerator, *_: Any) -> Divided:
        together = make_zero(model, accelerator, optimizer, stage=stage)
        return Divided(model=together.engine, optimizer=together.zero, together=together)

    return divided


STRATEGIES: dict[str, Callable[..., Divided]] = {"ddp": _ddp, "fsdp2": _fsdp2, "zero2": _zero(2), "zero3": _zero(3)}
