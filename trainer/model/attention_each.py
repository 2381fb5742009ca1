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

from trainer.model.sizes import sizes

BLOCK = 256
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
    """Dao 2023 (FlashAttention-2), section 2.3, has the formulas of the gradient.

    Documents are filled to sizes that come again. What fills one comes after its tokens, so none attends to it, and it
    has no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, lengths: tuple[int, ...]
    ) -> torch.Tensor:
        filled = sizes(lengths, q)
        q, k, v = (_filled(tensor, lengths, filled) for tensor in (q, k, v))
        ctx.save_for_backward(q, k, v)
        ctx.scale, ctx.lengths, ctx.filled = scale, lengths, filled
        return _forward(q, k, v, scale, lengths, filled)

    @staticmethod
    def backward(ctx: Any, grad_out: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        # [key heads, query heads of one, filled tokens, width]
        q, of_out = (tensor.unflatten(0, (len(k), -1)) for tensor in (q, _filled(grad_out, ctx.lengths, ctx.filled)))
        of_q, of_k, of_v = torch.empty_like(q), _sums(k), _sums(v)
        for queries, keys in _blocks(ctx.filled):
            # [key heads, query heads of one · queries, width or keys]
            q_rows, out_rows = (q[:, :, queries] * ctx.scale).flatten(1, 2), of_out[:, :, queries].flatten(1, 2)
            k_rows, v_rows = (
                k[:, keys].contiguous(),
                v[:, keys].contiguous(),
            )  # products with slices take 3 times as long
            share = _probabilities(q_rows, k_rows, queries.stop - queries.start)
            of_v[:, keys].baddbmm_(share.transpose(1, 2), out_rows)
            of_share = torch.bmm(out_rows, v_rows.transpose(1, 2))
            of_scores = torch.ops.aten._softmax_backward_data(of_share, share, -1, share.dtype)
            of_q[:, :, queries] = torch.bmm(of_scores, k_rows).view(q[:, :, queries].shape)
            of_k[:, keys].baddbmm_(of_scores.transpose(1, 2), q_rows)
        gradients = (of_q.mul_(ctx.scale).flatten(0, 1), of_k, of_v)
        return *(_unfilled(gradient, ctx.lengths, ctx.filled) for gradient in gradients), None, None


def _forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    lengths: Sequence[int],
    filled: Sequence[int],
) -> torch.Tensor:
    """Return [tokens, heads, width] of filled inputs.

    Key heads are repeated, because torch's CPU kernel distributes heads over threads. With grouped heads it would use
    only as many threads as key heads.
    """
    group = len(q) // len(k)
    if group > 1:
        k, v = k.repeat_interleave(group, dim=0), v.repeat_interleave(group, dim=0)
    outs = []
    for length, *inputs in zip(lengths, *(tensor.split(filled, 1) for tensor in (q, k, v)), strict=True):
        of_q, of_k, of_v = (tensor[None] for tensor in inputs)
        out = F.scaled_dot_product_attention(of_q, of_k, of_v, is_causal=True, scale=scale)
        outs.append(out[0, :, :length].transpose(0, 1))
    return torch.cat(outs)


def _filled(tensor: torch.Tensor, lengths: Sequence[int], filled: Sequence[int]) -> torch.Tensor:
    """[tokens, heads, width] → [heads, filled tokens, width], with zeros after each document's tokens."""
    result = tensor.new_empty(tensor.shape[1], sum(filled), tensor.shape[2])
    for to, part, length in zip(result.split(filled, 1), tensor.split(lengths), lengths, strict=True):
        to[:, :length] = part.transpose(0, 1)
        to[:, length:] = 0
    return result


def _unfilled(result: torch.Tensor, lengths: Sequence[int], filled: Sequence[int]) -> torch.Tensor:
    """[heads, filled tokens, width] → [tokens, heads, width]"""
    tensor = result.new_empty(sum(lengths), result.shape[0], result.shape[2])
    for to, part, length in zip(tensor.split(lengths), result.split(filled, 1), lengths, strict=True):
        to.copy_(part[:, :length].transpose(0, 1))
    return tensor


def _sums(tensor: torch.Tensor) -> torch.Tensor:
    """Return zeros like a [heads, filled tokens, width]. Their strides come again, too: kernels depend on them."""
    heads, tokens, width = tensor.shape
    return tensor.new_zeros(heads, 1 << (tokens - 1).bit_length(), width)[:, :tokens]


def _blocks(lengths: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    """Yield the queries of each block, and the keys up to its last query."""
    start = 0
    for length in lengths:
        for first in range(start, start + length, BLOCK):
            last = min(first + BLOCK, start + length)
            yield slice(first, last), slice(start, last)
        start += length


def _probabilities(q_rows: torch.Tensor, k: torch.Tensor, queries: int) -> torch.Tensor:
    """Return the shares of the keys: [key heads, query heads of one · queries, keys]."""
    scores = torch.bmm(q_rows, k.transpose(1, 2))
    scores.view(len(k), -1, queries, k.shape[1])[..., -queries:].add_(_future(queries, scores.dtype, scores.device))
    return torch.softmax(scores, dim=-1)


@lru_cache(maxsize=2 * BLOCK)
def _future(queries: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Minus infinity for each key after the query: [queries, queries]."""
    return torch.full((queries, queries), float("-inf"), dtype=dtype, device=device).triu_(1)
