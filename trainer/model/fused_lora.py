"""A frozen linear layer and its adapter as one autograd function, for 4-bit and plain weights.

    y = W x + s · B A d(x)        d: dropout, s = alpha / rank

PEFT's layers keep the adapter (parameters, files, disabling). Only their forward is replaced. This saves a clone and an
out-of-place sum of y, products of whole activations with s and with the dropout scale, one autograd node per product,
and float32 products if the model computes in 16 bits. Each use of the 4-bit weights unpacks them once.

Not covered, and left to PEFT: merged or several adapters, DoRA and other variants, LoRA with a bias.
"""

from __future__ import annotations

import types
from typing import Any

import bitsandbytes as bnb
import torch
import torch.nn.functional as F
from peft.tuners.lora.bnb import Linear4bit as Lora4bit
from peft.tuners.lora.layer import Linear as LoraLinear

MASK_LEVELS = 256
"""On a CPU, dropout draws one byte per element, so its rate is a multiple of 1/256: 0.05 becomes 13/256 = 0.0508."""


def fuse_adapter(adapted: Any) -> int:
    """Replace the forward of every supported adapted linear layer. Returns their number."""
    fused = 0
    for module in adapted.modules():
        if isinstance(module, Lora4bit | LoraLinear) and _covered(module):
            module.forward = types.MethodType(_forward, module)
            fused += 1
    return fused


def _covered(module: Any) -> bool:
    return (
        len(module.lora_A) == 1
        and not module.lora_variant
        and not any(module.lora_bias.values())
        and isinstance(module.base_layer, bnb.nn.Linear4bit | torch.nn.Linear)
        and not getattr(module, "fan_in_fan_out", False)
    )


def _forward(module: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """The new forward. Uses PEFT's own forward if the adapter is disabled or merged."""
    if module.disable_adapters or module.merged or args or kwargs:
        return type(module).forward(module, x, *args, **kwargs)
    (name,) = module.lora_A.keys()
    base, dropout = module.base_layer, module.lora_dropout[name]
    rate = getattr(dropout, "p", 0.0) if module.training else 0.0
    y: torch.Tensor = _FusedLora.apply(
        x,
        module.lora_A[name].weight,
        module.lora_B[name].weight,
        base.weight,
        base.quant_state if isinstance(base, bnb.nn.Linear4bit) else None,
        base.bias,
        module.scaling[name],
        rate,
    )
    return y


class _FusedLora(torch.autograd.Function):
    """Computes in the base's dtype; the adapter's float32 weights are cast, their gradients cast back."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        weight: torch.Tensor,
        state: Any,
        bias: torch.Tensor | None,
        scaling: float,
        rate: float,
    ) -> torch.Tensor:
        w = _unpacked(weight, state)
        rows = x.reshape(-1, x.shape[-1]).to(w.dtype)
        drawn, kept = _draw(rows, rate)
        keep = _keep(drawn, rows, rate)
        y = F.linear(rows, w, None if bias is None else bias.to(w.dtype))
        inner = (rows if keep is None else rows * keep) @ a.to(w.dtype).T
        y.addmm_(inner, b.to(w.dtype).T, alpha=scaling / kept)
        ctx.save_for_backward(rows, a, b, weight, inner, drawn)
        ctx.state, ctx.scale, ctx.rate, ctx.shape, ctx.dtype = state, scaling / kept, rate, x.shape, x.dtype
        return y.reshape(*x.shape[:-1], y.shape[-1]).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad_y: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, a, b, weight, inner, drawn = ctx.saved_tensors
        keep = _keep(drawn, rows, ctx.rate)
        w = _unpacked(weight, ctx.state)
        grad = grad_y.reshape(-1, grad_y.shape[-1]).to(w.dtype)
        grad_inner = (grad @ b.to(w.dtype)).mul_(ctx.scale)
        grad_b = (grad.T @ inner).to(b.dtype).mul_(ctx.scale)
        grad_a = (grad_inner.T @ (rows if keep is None else rows * keep)).to(a.dtype)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ w
            if keep is None:
                grad_x.addmm_(grad_inner, a.to(w.dtype))
            else:
                grad_x.add_((grad_inner @ a.to(w.dtype)).mul_(keep))
            grad_x = grad_x.reshape(ctx.shape).to(ctx.dtype)
        return grad_x, grad_a, grad_b, None, None, None, None, None


def _unpacked(weight: torch.Tensor, state: Any) -> torch.Tensor:
    """[out, in] in the dtype that the layer computes in."""
    if state is None:
        return weight
    packed = weight.data if weight.dtype == torch.uint8 else weight.data.view(torch.uint8).reshape(-1, 1)
    return bnb.functional.dequantize_4bit(packed, state)


def compute_unpacked(layer: Any) -> None:
    """Let a frozen 4-bit layer compute from its weights as a plain tensor."""
    layer.forward = types.MethodType(lambda self, x: _Frozen.apply(x, self.weight, self.quant_state, self.bias), layer)


class _Frozen(torch.autograd.Function):
    """A frozen linear layer, which unpacks its 4-bit weights once for each use."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, state: Any, bias: torch.Tensor | None) -> torch.Tensor:
        w = _unpacked(weight, state)
        ctx.save_for_backward(weight)
        ctx.state = state
        return F.linear(x.to(w.dtype), w, None if bias is None else bias.to(w.dtype)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad_y: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        w = _unpacked(weight, ctx.state)
        return (grad_y.to(w.dtype) @ w).to(grad_y.dtype), None, None, None


def _draw(rows: torch.Tensor, rate: float) -> tuple[torch.Tensor | None, float]:
    """Draw a dropout mask with one byte per element. Returns the mask and the kept share; None if all is kept.

    On a GPU the mask is bool. On a CPU it is uint8 noise, and low values are dropped.
    """
    if rate <= 0.0:
        return None, 1.0
    if rows.device.type != "cpu":
        return torch.empty_like(rows, dtype=torch.bool).bernoulli_(1.0 - rate), 1.0 - rate
    # Eight bytes per draw, from the whole range: random_() alone leaves the highest bit 0.
    draws = torch.empty(-(-rows.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
    noise = draws.view(torch.uint8)[: rows.numel()].view(rows.shape)
    return noise, 1.0 - _dropped_levels(rate) / MASK_LEVELS


def _keep(drawn: torch.Tensor | None, rows: torch.Tensor, rate: float) -> torch.Tensor | None:
    """Return the multiplier of rows: ones and zeros. On a CPU it has the rows' dtype, because a product with bools
    takes seven times as long."""
    if drawn is None or drawn.dtype == torch.bool:
        return drawn
    return torch.ge(drawn, _dropped_levels(rate), out=torch.empty_like(rows))


def _dropped_levels(rate: float) -> int:
    return min(MASK_LEVELS - 1, max(1, round(rate * MASK_LEVELS)))
