"""Compiles the decoder layers with torch.compile: norms, rotary positions, activations and sums.

Left out, because the compiler cannot trace them or would compile them anew for each length: the fused LoRA layers and
4-bit layers (their products are kernels already), attention, a mixture's experts. Generation runs uncompiled.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import bitsandbytes as bnb
import torch
from peft.tuners.lora.layer import LoraLayer
from torch.nn.utils.parametrize import is_parametrized
from transformers import AttentionInterface

from trainer.model import attention
from trainer.model.checkpointing import decoder_layers


def compile_layers(model: Any) -> int:
    """Compile each decoder layer at its first pass. Returns their number. Call before `checkpoint_layers`."""
    AttentionInterface.register(attention.NAME, torch.compiler.disable(attention.by_document))
    for module in model.modules():
        if isinstance(module, LoraLayer | bnb.nn.Linear4bit) or _holds_experts(module):
            module.forward = torch.compiler.disable(module.forward)
    layers = decoder_layers(model)
    for layer in layers:
        layer.forward = _compiled(layer.forward)
    return len(layers)


def _compiled(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Use the compiled forward for packs. A pass without documents is generation, which has another shape each time."""
    fast = torch.compile(forward, dynamic=True)

    @functools.wraps(forward)
    def either(*args: Any, **kwargs: Any) -> Any:
        return (fast if "documents" in kwargs else forward)(*args, **kwargs)

    return either


def _holds_experts(module: torch.nn.Module) -> bool:
    """Whether a module has experts of its own. Those in 4 bits are parametrized (`quantize_experts`)."""
    return is_parametrized(module) or any(p.ndim == 3 for p in module.parameters(recurse=False))
