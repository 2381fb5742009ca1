"""Causal attention on a CPU in 16 bits, as matrix products over blocks of queries.

    queries   ■ . . .      a block of queries sees every key up to its own end, so half of the square is never made;
              ■ ■ . .      query heads that share a key head are rows of one product, so no key is repeated;
              ■ ■ ■ .      the backward pass makes the scores again, so none are kept
              ■ ■ ■ ■

torch's own kernel computes 16-bit attention on a CPU at the pace of float32. Here all products but the scores' are in
16 bits: rounded scores would move the weights of large ones (8 bits of a score of 100 are steps of 0.5).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import torch

BLOCK_ROWS = 256
"""Rows of one product: queries of a block, times the query heads of a key head. More makes more of the square that is
masked, fewer makes short products."""


def blocked_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, lengths: Sequence[int]
) -> torch.Tensor:
    """Attention inside each document of a pack.

    Args:
        q: [tokens, heads, width]
        k, v: [tokens, key heads, width]
        lengths: tokens of each document, together all of them

    Returns:
        [tokens, heads, width]
    """
    assert sum(lengths) == len(q)
    out: torch.Tensor = _Blocked.apply(q, k, v, scale, lengths)
    return out


class _Blocked(torch.autograd.Function):
    """Keeps its arguments alone. A document is one range of rows in all tensors."""

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, lengths: Sequence[int]
    ) -> torch.Tensor:
        out = q.new_empty(q.shape)
        with torch.autocast("cpu", enabled=False):  # it would round the scores
            for document in _ranges(lengths):
                _forward_of_document(*(tensor[document] for tensor in (q, k, v, out)), scale=scale)
        ctx.save_for_backward(q, k, v)
        ctx.scale, ctx.lengths = scale, lengths
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        grad_q, grad_k, grad_v = (tensor.new_empty(tensor.shape) for tensor in (q, k, v))
        everything = (q, k, v, grad, grad_q, grad_k, grad_v)
        with torch.autocast("cpu", enabled=False):
            for document in _ranges(ctx.lengths):
                _backward_of_document(*(tensor[document] for tensor in everything), scale=ctx.scale)
        return grad_q, grad_k, grad_v, None, None


def _forward_of_document(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, *, scale: float) -> None:
    """Fill out."""
    keys, values = _by_head(k).float(), _by_head(v)
    for block in _blocks(q, keys):
        weights = _weights(_rows(q, block, keys), keys, block, scale)
        _put(out, block, weights @ values[:, : block.stop])


def _backward_of_document(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    grad: torch.Tensor,
    grad_q: torch.Tensor,
    grad_k: torch.Tensor,
    grad_v: torch.Tensor,
    *,
    scale: float,
) -> None:
    """Fill grad_q, grad_k, grad_v of one document; sums over blocks are float32."""
    keys, values = _by_head(k), _by_head(v)
    exact = keys.float()
    sum_k, sum_v = torch.zeros_like(exact), torch.zeros_like(exact)
    for block in _blocks(q, keys):
        seen = slice(block.stop)
        queries, of_out = _rows(q, block, keys), _rows(grad, block, keys)
        weights = _weights(queries, exact, block, scale)
        sum_v[:, seen] += weights.transpose(1, 2) @ of_out
        of_weights = of_out @ values[:, seen].transpose(1, 2)
        of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
        sum_k[:, seen] += of_scores.transpose(1, 2) @ queries
        _put(grad_q, block, (of_scores @ keys[:, seen]).mul_(scale))
    grad_k.copy_(sum_k.mul_(scale).transpose(0, 1))
    grad_v.copy_(sum_v.transpose(0, 1))


def _weights(queries: torch.Tensor, keys: torch.Tensor, block: slice, scale: float) -> torch.Tensor:
    """[key heads, rows, block.stop] in the queries' dtype; `keys` are float32."""
    scores = (queries.float() * scale) @ keys[:, : block.stop].transpose(1, 2)
    size = block.stop - block.start
    scores[:, :, block] += _later(size, queries.shape[1] // size)
    return torch.softmax(scores, -1).to(queries.dtype)


@cache
def _later(size: int, group: int) -> torch.Tensor:
    """[size × group, size]: −inf at keys after the row's query."""
    return torch.full((size, size), float("-inf")).triu_(1).repeat_interleave(group, 0)


def _ranges(lengths: Sequence[int]) -> Iterator[slice]:
    start = 0
    for length in lengths:
        yield slice(start, start + length)
        start += length


def _blocks(q: torch.Tensor, keys: torch.Tensor) -> Iterator[slice]:
    """Ranges of one document's queries."""
    size = max(1, BLOCK_ROWS * keys.shape[0] // q.shape[1])
    for start in range(0, len(q), size):
        yield slice(start, min(len(q), start + size))


def _by_head(k: torch.Tensor) -> torch.Tensor:
    """[tokens, key heads, width] → [key heads, tokens, width]"""
    return k.transpose(0, 1).contiguous()


def _rows(q: torch.Tensor, block: slice, keys: torch.Tensor) -> torch.Tensor:
    """[tokens, heads, width] → [key heads, queries of the block × heads of a group, width]"""
    return q[block].unflatten(1, (keys.shape[0], -1)).transpose(0, 1).flatten(1, 2)


def _put(into: torch.Tensor, block: slice, rows: torch.Tensor) -> None:
    """The way back from `_rows`."""
    by_query = rows.unflatten(1, (block.stop - block.start, -1)).transpose(0, 1)
    into[block].unflatten(1, (rows.shape[0], -1)).copy_(by_query)
