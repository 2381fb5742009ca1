"""Several processes share each pack: sequence parallelism, as DeepSpeed-Ulysses has it (arXiv 2309.14509).

    layers     process i has the i-th part of the pack's tokens         [tokens / N, heads]
               │ all-to-all of queries, keys and values
    attention  process i has the i-th part of the heads                 [tokens, heads / N]
               │ all-to-all of the output
    layers                                                              [tokens / N, heads]

Attention needs all earlier tokens of a document, but its heads know nothing of each other. All else is done for each
token alone, so activations take an N-th of the memory. Each process has a part of the loss, and the gradients of all
add up to those of one process.

If N does not divide the key heads, each is sent to several processes: they are repeated until it does.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Any

import torch
import torch.distributed as dist
from transformers import AutoConfig

from trainer.errors import UnusableInput
from trainer.model.base import source_of
from trainer.model.mixture import mixture_of
from trainer.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class SharedBy:
    """The processes that share a pack, and this one's place among them."""

    size: int = 1
    place: int = 0
    """Counted from 0: which part of the tokens and of the heads is this one's."""
    group: Any = None
    """torch's process group. None: this process is alone."""


ALONE = SharedBy()


def share_packs(size: int) -> SharedBy:
    """Form groups of `size` neighbouring processes. All processes of the run call it."""
    if size == 1:
        return ALONE
    group, _ = dist.new_subgroups(group_size=size)
    return SharedBy(size=size, place=dist.get_rank(group), group=group)


def check_sequence(recipe: Recipe) -> None:
    """Raises UnusableInput unless the processes of `distributed.sequence` can share the packs of the recipe's base."""
    base = recipe.base
    if recipe.distributed.sequence == 1:
        return
    source, revision = source_of(base)
    try:
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UnusableInput(f"base.model: the config of {base.model} cannot be read ({error})") from error
    check_shared(recipe, heads=config.num_attention_heads, experts=mixture_of(config) is not None)


def check_shared(recipe: Recipe, *, heads: int, experts: bool) -> None:
    """The same for a base with so many attention heads."""
    size = recipe.distributed.sequence
    if size > 1 and experts:
        raise UnusableInput(
            f"distributed.sequence: {size} cannot train {recipe.base.model}, because the loss that balances its "
            "experts needs whole packs. Use sequence: 1"
        )
    if heads % size:
        fitting = ", ".join(str(number) for number in range(1, heads + 1) if heads % number == 0)
        raise UnusableInput(
            f"distributed.sequence: {size} does not divide the {heads} attention heads of the base. "
            f"Use one of {fitting}"
        )


def repeats(key_heads: int, size: int) -> int:
    """Return how often each key head is sent: the fewest times that give all processes equally many."""
    return size // gcd(key_heads, size)


def to_heads(part: torch.Tensor, shared: SharedBy) -> torch.Tensor:
    """[tokens / N, heads, width] → [tokens, heads / N, width]."""
    blocks = part.unflatten(1, (shared.size, -1)).transpose(0, 1)
    return _exchange(blocks, shared).flatten(0, 1)


def to_tokens(part: torch.Tensor, shared: SharedBy) -> torch.Tensor:
    """[tokens, heads / N, width] → [tokens / N, heads, width]: the reverse of `to_heads`."""
    blocks = part.unflatten(0, (shared.size, -1))
    return _exchange(blocks, shared).transpose(0, 1).flatten(1, 2)


def _exchange(blocks: torch.Tensor, shared: SharedBy) -> torch.Tensor:
    exchanged: torch.Tensor = _AllToAll.apply(blocks, shared.group)
    return exchanged


class _AllToAll(torch.autograd.Function):
    """Block i goes to process i, whose block for this one comes back. So it is its own reverse, and its gradient's."""

    @staticmethod
    def forward(ctx: Any, blocks: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.group = group
        return _all_to_all(blocks, group)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _all_to_all(grad, ctx.group), None


def _all_to_all(blocks: torch.Tensor, group: Any) -> torch.Tensor:
    sent = blocks.contiguous()
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=group)
    return received
