"""Which attention a base runs on."""

from __future__ import annotations

import importlib.util

import torch

from trainer.errors import UnusableInput
from trainer.recipe import Base


def choose_attention(base: Base, device: torch.device) -> str:
    """transformers' name of the attention to load with. `auto` takes flash-attn where it is installed and can run.

    Raises:
        UnusableInput: flash attention is asked for and is not there.
    """
    available = device.type == "cuda" and importlib.util.find_spec("flash_attn") is not None
    match base.attention:
        case "auto":
            return "flash_attention_2" if available and base.compute_dtype != "float32" else "sdpa"
        case "flash_attention_2" if not available:
            raise UnusableInput(
                "base.attention: flash_attention_2 needs a CUDA device and the package flash-attn; "
                "attention: auto uses it where it is installed"
            )
        case name:
            return name
