"""A mixture of experts: how many experts a base has, its routers, and its experts in 4 bits.

transformers keeps the experts of a layer as 3-D parameters: [experts, out, in]. bitsandbytes quantizes linear layers
and leaves them in 16 bits, so they are quantized here after loading. What this costs:

    loading     a device needs room for all experts in 16 bits first (90 GB for Mixtral 8x7B, 23 GB afterwards)
    each start  quantizes again, because such weights cannot be saved (`load_kept` makes no copy)
    each pass   a layer's experts are unpacked together: 2.8 GB per layer of Mixtral, in the forward and again in the
                backward pass. They are freed in between only if the layer's experts are recomputed. So even the
                checkpointing policy `none` recomputes the experts (`checkpoint_layers`)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from bitsandbytes.nn.parametrize import Bnb4bitParametrization, replace_parameter_4bit
from torch.nn.utils import parametrize
from transformers import AutoConfig

from trainer.errors import UnusableInput
from trainer.model.base import NF4_BLOCK, source_of
from trainer.recipe import Base, Recipe


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """The numbers of a mixture."""

    experts: int
    """Experts of a layer."""
    top_k: int
    """Experts that each token gets."""


def mixture_of(config: Any) -> Mixture | None:
    """Return the mixture in a model's config, or None for a dense model."""
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    top_k = getattr(config, "num_experts_per_tok", None)
    return Mixture(experts=experts, top_k=top_k) if experts and top_k else None


def is_mixture(base: Base) -> bool:
    """Whether a base has experts, by its config."""
    source, revision = source_of(base)
    try:
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UnusableInput(f"base.model: the config of {base.model} cannot be read ({error})") from error
    return mixture_of(config) is not None


def check_router(recipe: Recipe) -> None:
    """Raises UnusableInput if the recipe trains the routers of a base without experts."""
    if not recipe.moe.freeze_router and not is_mixture(recipe.base):
        raise UnusableInput(
            f"moe.freeze_router: false, but {recipe.base.model} has no experts, so there is no router to train. "
            "Set it to true, or use a base with experts"
        )


def routers(model: Any) -> dict[str, torch.nn.Module]:
    """Return the routers of a causal model by name, in the order of the layers: what transformers records as such."""
    found = (getattr(model.base_model, "_can_record_outputs", None) or {}).get("router_logits")
    classes = tuple(item.target_class for item in ([found] if found else []) if item.target_class)
    modules: dict[str, torch.nn.Module] = dict(model.named_modules())
    return {name: module for name, module in modules.items() if isinstance(module, classes)}


def router_names(model: Any) -> list[str]:
    """Return the routers' module names as PEFT's `modules_to_save` needs them (`gate`).

    Raises:
        UnusableInput: the model has no routers that transformers can name.
    """
    names = sorted({name.rpartition(".")[2] for name in routers(model)})
    if not names:
        raise UnusableInput(
            f"moe.freeze_router: false, but {type(model).__name__} has no router to train. Set it to true"
        )
    return names


def expert_weights(model: Any) -> dict[str, tuple[torch.nn.Module, str]]:
    """Return module and parameter name of all expert weights by full name, quantized or not. A dense model has none."""
    found: dict[str, tuple[torch.nn.Module, str]] = {}
    if mixture_of(model.config) is None:
        return found
    for prefix, module in model.named_modules():
        names = [name for name, parameter in module.named_parameters(recurse=False) if parameter.ndim == 3]
        names += [name for name in getattr(module, "parametrizations", ()) if _packed(module, name)]
        found |= {f"{prefix}.{name}": (module, name) for name in names}
    return found


def quantized_experts(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the modules whose weights are experts in 4 bits."""
    return [
        module
        for module in model.modules()
        if any(_packed(module, name) for name in getattr(module, "parametrizations", ()))
    ]


def quantize_experts(model: Any, *, double_quantization: bool) -> int:
    """Quantize all experts of a loaded model to NF4 in place. Returns the number of parameters. See this module's text.

    Raises:
        UnusableInput: an expert is not a whole number of NF4 blocks.
    """
    weights = expert_weights(model)
    for full_name, (module, name) in weights.items():
        if getattr(module, name)[0].numel() % NF4_BLOCK:
            raise UnusableInput(
                f"base.quantization: an expert of {full_name} has {getattr(module, name)[0].numel()} weights, which is "
                f"not a multiple of {NF4_BLOCK}. Use quantization: none for this base"
            )
        replace_parameter_4bit(module, name, compress_statistics=double_quantization, quant_type="nf4")
    return len(weights)


def check_experts(model: Any, dtype: torch.dtype, *, quantized: bool, nested: bool = True) -> int:
    """Check dtype and size of each expert. Returns the bytes of all experts, 0 for a dense model.

    Raises:
        UnusableInput: an expert is not stored as required, or the mixture has none where they are expected.
    """
    weights, mixture = expert_weights(model), mixture_of(model.config)
    if mixture is not None and not weights:
        raise UnusableInput(
            f"base.model: {type(model).__name__} has {mixture.experts} experts, but none is stored as a 3-D parameter. "
            "This layout is not supported"
        )
    return sum(
        _check_packed(full_name, module, name, dtype, nested=nested)
        if quantized
        else _check_plain(full_name, module, name, dtype)
        for full_name, (module, name) in weights.items()
    )


def _packed(module: Any, name: str) -> bool:
    return parametrize.is_parametrized(module, name) and any(
        isinstance(item, Bnb4bitParametrization) for item in module.parametrizations[name]
    )


def _check_plain(full_name: str, module: Any, name: str, dtype: torch.dtype) -> int:
    if _packed(module, name):
        raise UnusableInput(f"base.quantization: none, but the experts {full_name} are in 4 bits")
    weight: torch.Tensor = getattr(module, name)
    if weight.dtype != dtype or weight.element_size() != dtype.itemsize:
        raise UnusableInput(f"base.quantization: none, but the experts {full_name} are {weight.dtype}, not {dtype}")
    return weight.numel() * weight.element_size()


def _check_packed(full_name: str, module: Any, name: str, dtype: torch.dtype, *, nested: bool) -> int:
    if not _packed(module, name):
        raise UnusableInput(
            f"base.quantization: nf4, but the experts {full_name} stayed in {getattr(module, name).dtype}"
        )
    stored, state = module.parametrizations[name].original, module.parametrizations[name][0].quant_state
    packed = stored.numel() * stored.element_size()
    if stored.dtype != torch.uint8 or state.quant_type != "nf4" or packed * 2 != state.shape.numel():
        raise UnusableInput(
            f"base.quantization: the experts {full_name} are {state.quant_type} in {packed} bytes of {stored.dtype}, "
            f"not NF4 in {state.shape.numel() // 2}"
        )
    if state.dtype != dtype:
        raise UnusableInput(f"base.compute_dtype: the experts {full_name} unpack to {state.dtype}, not {dtype}")
    if bool(state.nested) != nested:
        raise UnusableInput(f"base.double_quantization: the experts {full_name} have {state.nested}, not {nested}")
    return packed
