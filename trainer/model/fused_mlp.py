"""SwiGLU as one autograd function: silu(gate) · up (Shazeer 2020).

It keeps gate and up. Autograd would keep silu(gate), too. On a CPU it works in pieces that stay in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F

PARTS = {"gate_proj", "up_proj", "down_proj", "act_fn"}
CPU_PIECE, GPU_PIECE = 1 << 18, 1 << 24
"""Elements at once: on a CPU they stay in its cache, on a GPU temporary tensors stay small."""


def fuse_mlps(model: Any) -> int:
    """Replace the forward of every MLP that computes down(silu(gate(x)) · up(x)). Returns their number."""
    found = [module for module in model.modules() if {name for name, _ in module.named_children()} == PARTS]
    same: dict[type, bool] = {}
    for module in found:
        if type(module) not in same:
            same[type(module)] = _same(module)
    covered = [module for module in found if same[type(module)]]
    for module in covered:
        module.forward = MethodType(_forward, module)
    return len(covered)


def _same(module: Any) -> bool:
    """Whether an MLP gives for some input what ours gives. Some families have another activation."""
    weight = module.gate_proj.weight
    x = torch.linspace(-3.0, 2.0, 2 * module.gate_proj.in_features, device=weight.device).view(1, 2, -1)
    x = x.to(weight.dtype if weight.is_floating_point() else torch.get_default_dtype())
    training = module.training
    module.eval()  # dropout would make the two differ
    with torch.no_grad():
        own, ours = module(x), _forward(module, x)
    module.train(training)
    close = 2.0**-6 if own.dtype.itemsize == 2 else 1e-5
    return torch.allclose(own, ours, rtol=close, atol=close * own.abs().max().item())


def _forward(module: Any, x: torch.Tensor) -> torch.Tensor:
    y: torch.Tensor = module.down_proj(_SwiGlu.apply(module.gate_proj(x), module.up_proj(x)))
    return y


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        y = torch.empty_like(up, memory_format=torch.contiguous_format)  # so that its pieces are views
        for of_gate, of_up, of_y in _pieces(gate, up, y):
            torch.mul(F.silu(of_gate), of_up, out=of_y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = ctx.saved_tensors
        to_gate, to_up = (torch.empty_like(one, memory_format=torch.contiguous_format) for one in (gate, up))
        for of_gate, of_up, of_grad, gate_grad, up_grad in _pieces(gate, up, grad, to_gate, to_up):
            torch.mul(F.silu(of_gate), of_grad, out=up_grad)
            torch.ops.aten.silu_backward.grad_input(of_grad * of_up, of_gate, grad_input=gate_grad)
        return to_gate, to_up


def _pieces(*tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield the same rows of all tensors."""
    rows = [tensor.reshape(-1, tensor.shape[-1]) for tensor in tensors]
    piece = CPU_PIECE if rows[0].device.type == "cpu" else GPU_PIECE
    yield from zip(*(tensor.split(max(1, piece // tensor.shape[1])) for tensor in rows), strict=True)
