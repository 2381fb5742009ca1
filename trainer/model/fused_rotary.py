"""Rotary positions as one autograd function, in half as many passes as transformers'.

    [a b] → [a·cos − b·sin, b·cos + a·sin]        a, b: halves of a head (Su et al. 2021, RoFormer)

Its gradient is the rotation backward. Attention layers call the function by its global name, so each gets a forward of
its own with another global. transformers itself stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

import torch

NAME = "apply_rotary_pos_emb"


def fuse_rotary(model: Any) -> int:
    """Let each attention layer rotate with `rotate`, if its own function computes the same. Returns their number."""
    fused = 0
    for module in model.modules():
        forward = type(module).forward
        calls_it = isinstance(forward, FunctionType) and NAME in forward.__code__.co_names
        if calls_it and _same(forward.__globals__[NAME]):
            module.forward = MethodType(_with_global(forward, rotate), module)
            fused += 1
    return fused


def _same(own: Callable[..., tuple[torch.Tensor, torch.Tensor]]) -> bool:
    """Some families rotate neighbours instead of halves."""
    q, k = torch.linspace(-1.0, 1.0, 48).view(1, 2, 3, 8), torch.linspace(1.0, 2.0, 24).view(1, 1, 3, 8)
    angles = torch.linspace(0.0, 3.0, 24).view(1, 3, 8)
    ours, theirs = rotate(q, k, angles.cos(), angles.sin()), own(q, k, angles.cos(), angles.sin())
    return all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(ours, theirs, strict=True))


def _with_global(forward: FunctionType, value: Any) -> FunctionType:
    changed = FunctionType(
        forward.__code__,
        {**forward.__globals__, NAME: value},
        forward.__name__,
        forward.__defaults__,
        forward.__closure__,
    )
    changed.__kwdefaults__ = forward.__kwdefaults__
    return changed


def rotate(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate queries and keys.

    Args:
        q, k: [batch, heads, tokens, width]
        cos, sin: [batch, tokens, width]
        unsqueeze_dim: where q and k have their heads
    """
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return _Rotation.apply(q, cos, sin), _Rotation.apply(k, cos, sin)


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        half = x.shape[-1] // 2
        y = x * cos
        y[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
        y[..., half:].addcmul_(x[..., :half], sin[..., half:])
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        half = grad.shape[-1] // 2
        y = grad * cos
        y[..., :half].addcmul_(grad[..., half:], sin[..., half:])
        y[..., half:].addcmul_(grad[..., :half], sin[..., :half], value=-1)
        return y, None, None
