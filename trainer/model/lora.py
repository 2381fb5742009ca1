"""Creates an adapter on a base, or loads a parent adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError

from trainer.errors import UnusableInput
from trainer.model.base import check_targets
from trainer.recipe import Lora


def add_adapter(model: Any, lora: Lora, *, parent: Path | None, seed: int, dtype: torch.dtype = torch.float32) -> Any:
    """Put a trainable adapter on a frozen base.

    Args:
        parent: adapter folder to continue from. It must have the recipe's shape.
        dtype: dtype of the adapter, regardless of the parent's

    Raises:
        UnusableInput: the architecture lacks a target, or the parent has another shape.
    """
    check_targets(model, lora)
    torch.manual_seed(seed)
    if parent is None:
        adapted = get_peft_model(model, lora_config(lora))
    else:
        config = check_parent(parent, lora)
        config.lora_dropout = lora.dropout  # dropout is not part of the shape: use the recipe's
        config.inference_mode = False
        try:
            adapted = PeftModel.from_pretrained(model, str(parent), is_trainable=True, config=config)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise UnusableInput(f"the parent adapter {parent} cannot be loaded ({error})") from error
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    return adapted


def load_adapter(model: Any, folder: Path, *, name: str = "default") -> Any:
    """Put a finished adapter of any LoRA shape on a base, for evaluation. A second one gets a name of its own.

    Raises:
        UnusableInput: the folder is no LoRA adapter, or belongs to another base.
    """
    try:
        config = PeftConfig.from_pretrained(str(folder))
        if not isinstance(config, LoraConfig):
            raise UnusableInput(f"{folder} is not a LoRA adapter, but {config.peft_type or 'of an unknown type'}")
        if isinstance(model, PeftModel):
            model.load_adapter(str(folder), adapter_name=name, is_trainable=False)
            return model
        return PeftModel.from_pretrained(model, str(folder), adapter_name=name, is_trainable=False, config=config)
    except (OSError, ValueError, TypeError, RuntimeError, KeyError, SafetensorError) as error:
        raise UnusableInput(
            f"the adapter {folder} cannot be loaded ({' '.join(str(error).split())[:300]}). "
            "Use the recipe with which it was trained (--recipe)"
        ) from error


def lora_config(lora: Lora) -> LoraConfig:
    """Return PEFT's config for a recipe. Never uses rsLoRA: alpha is chosen for alpha / rank."""
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
        bias="none",
        use_rslora=False,
        task_type="CAUSAL_LM",
    )


def check_parent(parent: Path, lora: Lora) -> LoraConfig:
    """Return a parent adapter's config. Raises UnusableInput unless its shape matches the recipe."""
    try:
        config = PeftConfig.from_pretrained(str(parent))
    except (OSError, ValueError, TypeError) as error:
        raise UnusableInput(f"the parent adapter {parent} has no readable adapter_config.json ({error})") from error
    if not isinstance(config, LoraConfig):
        raise UnusableInput(f"the parent adapter {parent} is {config.peft_type}, not LoRA")
    wanted = {"rank": lora.rank, "alpha": lora.alpha, "targets": sorted(lora.targets), "rsLoRA": False}
    found = {
        "rank": config.r,
        "alpha": config.lora_alpha,
        "targets": sorted(config.target_modules or []),
        "rsLoRA": config.use_rslora,
    }
    if differing := [f"{key} {found[key]} instead of {wanted[key]}" for key in wanted if found[key] != wanted[key]]:
        raise UnusableInput(
            f"the parent adapter {parent} has {'; '.join(differing)}. Use a new stream for another shape"
        )
    return config


def adapter_weights(adapted: Any) -> dict[str, torch.Tensor]:
    """Return CPU copies of the adapter's weights, by PEFT's file names."""
    state = get_peft_model_state_dict(adapted)
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()}


@torch.no_grad()
def relative_norms(adapted: Any) -> dict[str, float]:
    """Return the Frobenius norm of each module's change, s · B A, as a share of the norm of its base weight W.

    The change is never formed: ‖B A‖² is the sum of the elements of (Bᵀ B) ∘ (A Aᵀ), both rank × rank.
    """
    return {name: _relative_norm(module) for name, module in adapted.named_modules() if hasattr(module, "lora_A")}


def _relative_norm(module: Any) -> float:
    (which,) = module.lora_A.keys()
    a, b = module.lora_A[which].weight.double(), module.lora_B[which].weight.double()
    change = module.scaling[which] * ((b.T @ b) * (a @ a.T)).sum().clamp(min=0).sqrt()
    weight, state = module.base_layer.weight, getattr(module.base_layer, "quant_state", None)
    base = weight if state is None else bnb.functional.dequantize_4bit(weight.data, state)
    return float(change / base.double().norm())


def trainable_parameters(adapted: Any) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in adapted.parameters() if p.requires_grad)
