"""Attention one document after the other, for CPUs: torch's kernel forward, our own backward.

torch's backward computes one head at a time, from small products. Ours takes blocks of queries, with all query heads of
a key head in one product. Nothing of size tokens² is kept: the backward pass computes the probabilities again.

    queries of a block   s ┌──────┬───┐
                           │ all  │ ◣ │    keys 0 … e; those after the query are masked in the last square
                         e └──────┴───┘
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F

BLOCK = 128
"""Queries per block. Larger blocks compute more masked products; smaller ones are slower products."""


def attend_each(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, lengths: Sequence[int]
) -> torch.Tensor:
    """Attend document by document, each token to earlier ones of its own document.

    Args:
        q: [tokens, heads, width]
        k, v: [tokens, key heads, width]
        scale: factor of the products of q and k
        lengths: tokens of each document

    Returns:
        [tokens, heads, width]
    """
    out: torch.Tensor = _Attention.apply(q, k, v, scale, tuple(lengths))
    return out


class _Attention(torch.autograd.Function):
    """Dao 2023 (FlashAttention-2), section 2.3, has the formulas of the gradient."""

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, lengths: tuple[int, ...]
    ) -> torch.Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.scale, ctx.lengths = scale, lengths
        return _forward(q, k, v, scale, lengths)

    @staticmethod
    def backward(ctx: Any, grad_out: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v = (tensor.transpose(0, 1) for tensor in ctx.saved_tensors)
        shared, width = k.shape[0], q.shape[-1]
        q, of_out = (
            tensor.reshape(shared, -1, tensor.shape[1], width) for tensor in (q * ctx.scale, grad_out.transpose(0, 1))
        )
        of_q = torch.empty_like(q)
        of_k, of_v = (torch.zeros(k.shape, dtype=k.dtype, device=k.device) for _ in range(2))
        for queries, keys in _blocks(ctx.lengths):
            # [key heads, query heads of one · queries, width or keys]
            q_rows, out_rows = q[:, :, queries].flatten(1, 2), of_out[:, :, queries].flatten(1, 2)
            share = _probabilities(q_rows, k[:, keys], q[:, :, queries].shape)
            of_v[:, keys].baddbmm_(share.transpose(1, 2), out_rows)
            of_share = out_rows @ v[:, keys].transpose(1, 2)
            of_scores = torch.ops.aten._softmax_backward_data(of_share, share, -1, share.dtype)
            of_q[:, :, queries] = (of_scores @ k[:, keys]).view(q[:, :, queries].shape)
            of_k[:, keys].baddbmm_(of_scores.transpose(1, 2), q_rows)
        of_q = of_q.mul_(ctx.scale).flatten(0, 1)
        return of_q.transpose(0, 1), of_k.transpose(0, 1), of_v.transpose(0, 1), None, None


def _forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, lengths: tuple[int, ...]) -> torch.Tensor:
    """Key heads are repeated, because torch's CPU kernel distributes heads over threads. With grouped heads it would
    use only as many threads as key heads.
    """
    group = q.shape[1] // k.shape[1]
    if group > 1:
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    parts = zip(*(tensor.split(lengths) for tensor in (out, q, k, v)), strict=True)
    for to, *inputs in parts:
        of_q, of_k, of_v = (tensor.transpose(0, 1)[None] for tensor in inputs)
        to.copy_(F.scaled_dot_product_attention(of_q, of_k, of_v, is_causal=True, scale=scale)[0].transpose(0, 1))
    return out


def _blocks(lengths: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    """Yield the queries of each block, and the keys up to its last query."""
    start = 0
    for length in lengths:
        for first in range(start, start + length, BLOCK):
            last = min(first + BLOCK, start + length)
            yield slice(first, last), slice(start, last)
        start += length


def _probabilities(q_rows: torch.Tensor, k: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Return the shares of the keys: [key heads, query heads of one · queries, keys].

    Args:
        shape: key heads, query heads of one, queries, width
    """
    scores = q_rows @ k.transpose(1, 2)
    queries = shape[2]
    scores.view(*shape[:3], -1)[..., -queries:].add_(_future(queries, scores.dtype, scores.device))
    return torch.softmax(scores, dim=-1)


@lru_cache(maxsize=2 * BLOCK)
def _future(queries: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Minus infinity for each key after the query: [queries, queries]."""
    return torch.full((queries, queries), float("-inf"), dtype=dtype, device=device).triu_(1)
