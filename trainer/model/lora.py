"""Creates an adapter on a base, or loads a parent adapter.

If the recipe trains a mixture's routers (`moe.freeze_router: false`), the adapter also holds a whole copy of each
router (PEFT's `modules_to_save`). PEFT saves and loads it, and uses the base's own while the adapter is disabled.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict
from peft.utils.other import ModulesToSaveWrapper
from safetensors import SafetensorError

from trainer.errors import UnusableInput
from trainer.model.base import check_targets
from trainer.model.mixture import router_names
from trainer.model.shards import gathered, whole
from trainer.recipe import Lora, Moe


def add_adapter(
    model: Any,
    lora: Lora,
    *,
    parent: Path | None,
    seed: int,
    dtype: torch.dtype = torch.float32,
    moe: Moe = Moe(),  # noqa: B008 - it is frozen
) -> Any:
    """Put a trainable adapter on a frozen base.

    Args:
        parent: adapter folder to continue from. It must have the recipe's shape.
        moe: whether the routers are trained, too
        dtype: dtype of the adapter, regardless of the parent's

    Raises:
        UnusableInput: the architecture lacks a target, or the parent has another shape.
    """
    check_targets(model, lora)
    trained = [] if moe.freeze_router else router_names(model)
    torch.manual_seed(seed)
    if parent is None:
        adapted = get_peft_model(model, lora_config(lora, routers=trained))
    else:
        config = check_parent(parent, lora, routers=trained)
        config.lora_dropout = lora.dropout  # dropout is not part of the shape: use the recipe's
        config.inference_mode = False
        try:
            adapted = PeftModel.from_pretrained(model, str(parent), is_trainable=True, config=config)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise UnusableInput(f"the parent adapter {parent} cannot be loaded ({error})") from error
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    _route_in_own_dtype(adapted)
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
            adapted = model
        else:
            adapted = PeftModel.from_pretrained(
                model, str(folder), adapter_name=name, is_trainable=False, config=config
            )
        _route_in_own_dtype(adapted)
        return adapted
    except (OSError, ValueError, TypeError, RuntimeError, KeyError, SafetensorError) as error:
        raise UnusableInput(
            f"the adapter {folder} cannot be loaded ({' '.join(str(error).split())[:300]}). "
            "Use the recipe with which it was trained (--recipe)"
        ) from error


def trained_routers(adapted: Any) -> dict[str, ModulesToSaveWrapper]:
    """Return the routers that an adapter has copies of, by name."""
    return {name: module for name, module in adapted.named_modules() if isinstance(module, ModulesToSaveWrapper)}


def _route_in_own_dtype(adapted: Any) -> None:
    """Let each trained router take its input in the dtype of its weights, which may be float32 on a 16-bit base."""
    for wrapper in trained_routers(adapted).values():
        for router in wrapper.modules_to_save.values():
            if not router._forward_pre_hooks:
                router.register_forward_pre_hook(lambda module, args: (args[0].to(module.weight.dtype), *args[1:]))


def lora_config(lora: Lora, *, routers: list[str] | None = None) -> LoraConfig:
    """Return PEFT's config for a recipe. Never uses rsLoRA: alpha is chosen for alpha / rank.

    Args:
        routers: names of the routers that are trained whole
    """
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
        modules_to_save=routers or None,
        bias="none",
        use_rslora=False,
        task_type="CAUSAL_LM",
    )


def check_parent(parent: Path, lora: Lora, *, routers: list[str] | None = None) -> LoraConfig:
    """Return a parent adapter's config. Raises UnusableInput unless its shape matches the recipe."""
    try:
        config = PeftConfig.from_pretrained(str(parent))
    except (OSError, ValueError, TypeError) as error:
        raise UnusableInput(f"the parent adapter {parent} has no readable adapter_config.json ({error})") from error
    if not isinstance(config, LoraConfig):
        raise UnusableInput(f"the parent adapter {parent} is {config.peft_type}, not LoRA")
    wanted = {"rank": lora.rank, "alpha": lora.alpha, "targets": sorted(lora.targets), "rsLoRA": False}
    wanted["trained routers"] = sorted(routers or [])
    found = {
        "rank": config.r,
        "alpha": config.lora_alpha,
        "targets": sorted(config.target_modules or []),
        "rsLoRA": config.use_rslora,
        "trained routers": sorted(config.modules_to_save or []),
    }
    if differing := [f"{key} {found[key]} instead of {wanted[key]}" for key in wanted if found[key] != wanted[key]]:
        raise UnusableInput(
            f"the parent adapter {parent} has {'; '.join(differing)}. Use a new stream for another shape"
        )
    return config


def adapter_weights(adapted: Any) -> dict[str, torch.Tensor]:
    """Return CPU copies of the adapter's weights, by PEFT's file names. With shards, every rank takes part."""
    with gathered(adapted):
        state = get_peft_model_state_dict(adapted)
        return {name: whole(tensor.detach()).to("cpu", copy=True).contiguous() for name, tensor in state.items()}


@torch.no_grad()
def relative_norms(adapted: Any) -> dict[str, float]:
    """Return the Frobenius norm of each module's change, s · B A, as a share of the norm of its base weight W.

    LoRA's change is never formed: ‖B A‖² is the sum of the elements of (Bᵀ B) ∘ (A Aᵀ), both rank × rank. A trained
    router's change is its difference to the base's.
    """
    norms = {name: _relative_norm(module) for name, module in adapted.named_modules() if hasattr(module, "lora_A")}
    return norms | {name: _router_norm(wrapper) for name, wrapper in trained_routers(adapted).items()}


def _router_norm(wrapper: Any) -> float:
    (router,) = wrapper.modules_to_save.values()
    before, after = wrapper.original_module.weight.double(), router.weight.double()
    return float((after - before).norm() / before.norm())


def _relative_norm(module: Any) -> float:
    (which,) = module.lora_A.keys()
    a, b = module.lora_A[which].weight.double(), module.lora_B[which].weight.double()
    change = module.scaling[which] * ((b.T @ b) * (a @ a.T)).sum().clamp(min=0).sqrt()
    weight, state = module.base_layer.weight, getattr(module.base_layer, "quant_state", None)
    base = weight if state is None else bnb.functional.dequantize_4bit(weight.data, state)
    return float(change / base.double().norm())


def trainable_parameters(adapted: Any) -> int:
    """Number of trainable parameters."""
    return sum(getattr(p, "ds_numel", p.numel()) for p in adapted.parameters() if p.requires_grad)
