"""Frozen linear layers with the same input, and their adapters, as one autograd function. 4-bit and plain weights.

    y₁ = W₁ x + s₁ · B₁ A₁ d(x)        q, k and v, or gate and up; other layers alone
    y₂ = W₂ x + s₂ · B₂ A₂ d(x)        d: dropout with one mask, s = alpha / rank

PEFT's layers keep the adapter (parameters, files, disabling). Only their forward is replaced. This saves a clone and an
out-of-place sum of y, products of whole activations with s and with the dropout scale, one autograd node per product,
and float32 products if the model computes in 16 bits. Layers with the same input share the dropout mask, the product
with all their A, and the sum of their gradients. Each use of the 4-bit weights unpacks them once.

Not covered, and left to PEFT: merged or several adapters, DoRA and other variants, LoRA with a bias.
"""

from __future__ import annotations

import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import bitsandbytes as bnb
import torch
import torch.nn.functional as F
from peft.tuners.lora.bnb import Linear4bit as Lora4bit
from peft.tuners.lora.layer import Linear as LoraLinear

MASK_LEVELS = 256
"""On a CPU, dropout draws one byte per element, so its rate is a multiple of 1/256: 0.05 becomes 13/256 = 0.0508."""
GROUPS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Siblings that a layer calls with the same tensor, in this order."""


def fuse_adapter(adapted: Any) -> int:
    """Replace the forward of every supported adapted linear layer. Returns their number."""
    fused = [module for module in adapted.modules() if isinstance(module, Lora4bit | LoraLinear) and _covered(module)]
    for members in _grouped(adapted, fused):
        group = _Group(members)
        for module in members:
            module.fused_group = group
            module.forward = types.MethodType(_forward, module)
    return len(fused)


def forget_outputs(adapted: Any) -> None:
    """Let go of outputs that nobody has asked for, because a pass has failed. They hold the memory of that pass."""
    for module in adapted.modules():
        group = getattr(module, "fused_group", None)
        if group is not None:
            group.forget()


def _covered(module: Any) -> bool:
    return (
        len(module.lora_A) == 1
        and not module.lora_variant
        and not any(module.lora_bias.values())
        and isinstance(module.base_layer, bnb.nn.Linear4bit | torch.nn.Linear)
        and not getattr(module, "fan_in_fan_out", False)
    )


def _grouped(adapted: Any, fused: list[Any]) -> list[tuple[Any, ...]]:
    """Divide the layers into groups. Members share a dropout mask, so they have the same rate. Most stand alone."""
    known, groups = {id(module) for module in fused}, []
    for parent in adapted.modules():
        for names in GROUPS:
            children: list[Any] = [getattr(parent, name, None) for name in names]
            members = tuple(child for child in children if id(child) in known)
            alike = {(member.in_features, _rate(member), _compute_dtype(member.base_layer)) for member in members}
            if len(members) > 1 and len(alike) == 1:
                groups.append(members)
                known -= {id(member) for member in members}
    return groups + [(module,) for module in fused if id(module) in known]


def _rate(module: Any) -> float:
    (dropout,) = module.lora_dropout.values()
    return float(getattr(dropout, "p", 0.0))


def _compute_dtype(base: Any) -> torch.dtype:
    dtype: torch.dtype = base.quant_state.dtype if isinstance(base, bnb.nn.Linear4bit) else base.weight.dtype
    return dtype


class _Group:
    """Layers with the same input. A call of the first computes all. The others' outputs wait for their calls."""

    def __init__(self, members: tuple[Any, ...]) -> None:
        self.members = members
        self.input: torch.Tensor | None = None
        self.waiting: dict[int, torch.Tensor] = {}

    def output(self, module: Any, x: torch.Tensor) -> torch.Tensor:
        place = next(place for place, member in enumerate(self.members) if member is module)
        if self.input is not x or place not in self.waiting:
            self.forget()
            computed = range(len(self.members)) if place == 0 else range(place, place + 1)
            outputs = _outputs([self.members[i] for i in computed], x)  # may raise: a recomputation stops in it
            self.input, self.waiting = x, dict(zip(computed, outputs, strict=True))
        y = self.waiting.pop(place)
        if not self.waiting:
            self.input = None
        return y

    def forget(self) -> None:
        self.input, self.waiting = None, {}


def _forward(module: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """The new forward. Uses PEFT's own forward if the adapter is disabled or merged."""
    if module.disable_adapters or module.merged or args or kwargs:
        module.fused_group.forget()
        return type(module).forward(module, x, *args, **kwargs)
    y: torch.Tensor = module.fused_group.output(module, x)
    return y


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """What is not trained of a layer."""

    state: Any
    """bitsandbytes' description of 4-bit weights. None: the weights are plain."""
    bias: torch.Tensor | None
    scaling: float
    """alpha / rank"""


def _outputs(modules: Sequence[Any], x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the output of each layer, with one dropout mask for all."""
    layers, tensors = [], []
    for module in modules:
        (name,) = module.lora_A.keys()
        base = module.base_layer
        state = base.quant_state if isinstance(base, bnb.nn.Linear4bit) else None
        layers.append(_Layer(state=state, bias=base.bias, scaling=module.scaling[name]))
        tensors += [module.lora_A[name].weight, module.lora_B[name].weight, base.weight]
    rate = _rate(modules[0]) if modules[0].training else 0.0
    ys: tuple[torch.Tensor, ...] = _FusedLora.apply(x, rate, _compute_dtype(modules[0].base_layer), layers, *tensors)
    return ys


class _FusedLora(torch.autograd.Function):
    """Computes in the base's dtype; the adapters' float32 weights are cast, their gradients cast back.

    Arguments after `layers`: A [rank, in], B [out, rank] and the base's weights of each layer.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, rate: float, dtype: torch.dtype, layers: list[_Layer], *tensors: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        a, b, weights = tensors[::3], tensors[1::3], tensors[2::3]
        rows = x.reshape(-1, x.shape[-1]).to(dtype)
        drawn, kept = _draw(rows, rate)
        keep = _keep(drawn, rows, rate)
        inner = (rows if keep is None else rows * keep) @ _joined(a, dtype).T  # [rows, sum of ranks]
        ys = []
        for layer, of_a, of_b, weight in zip(layers, inner.split([len(one) for one in a], 1), b, weights, strict=True):
            w = _unpacked(weight, layer.state)
            y = F.linear(rows, w, None if layer.bias is None else layer.bias.to(dtype))
            y.addmm_(of_a, of_b.to(dtype).T, alpha=layer.scaling / kept)
            ys.append(y.reshape(*x.shape[:-1], y.shape[-1]).to(x.dtype))
        ctx.save_for_backward(rows, inner, drawn, *tensors)
        ctx.states, ctx.scales = [one.state for one in layers], [one.scaling / kept for one in layers]
        ctx.rate, ctx.shape, ctx.dtype = rate, x.shape, x.dtype
        return tuple(ys)

    @staticmethod
    def backward(ctx: Any, *of_ys: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, inner, drawn, *tensors = ctx.saved_tensors
        a, b, weights = tensors[::3], tensors[1::3], tensors[2::3]
        ranks = [len(one) for one in a]
        keep = _keep(drawn, rows, ctx.rate)
        grads = [grad.reshape(-1, grad.shape[-1]).to(rows.dtype) for grad in of_ys]
        scaled = list(zip(grads, b, ctx.scales, strict=True))
        of_inner = torch.cat([(grad @ one.to(grad.dtype)).mul_(scale) for grad, one, scale in scaled], dim=1)
        of_b = [
            (grad.T @ part).to(one.dtype).mul_(scale)
            for (grad, one, scale), part in zip(scaled, inner.split(ranks, 1), strict=True)
        ]
        of_a = (of_inner.T @ (rows if keep is None else rows * keep)).to(a[0].dtype).split(ranks)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = of_inner @ _joined(a, rows.dtype)
            if keep is not None:
                of_x.mul_(keep)
            for grad, weight, state in zip(grads, weights, ctx.states, strict=True):
                of_x.addmm_(grad, _unpacked(weight, state))
            of_x = of_x.reshape(ctx.shape).to(ctx.dtype)
        trained = [gradient for pair in zip(of_a, of_b, strict=True) for gradient in (*pair, None)]
        return of_x, None, None, None, *trained


def _joined(matrices: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """[sum of rows, columns]"""
    return (matrices[0] if len(matrices) == 1 else torch.cat(list(matrices))).to(dtype)


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
