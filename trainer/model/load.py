"""Loads the base model: its tokenizer, and its frozen weights, in 4 bits if the recipe says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from trainer.errors import UnusableInput
from trainer.model.base import linear_layers, source_of
from trainer.model.loading import download_options
from trainer.model.mixture import check_experts, expert_weights, quantize_experts, routers
from trainer.recipe import Base

NATIVE_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})


def load_tokenizer(base: Base) -> Any:
    """Load the base's own tokenizer."""
    source, revision = source_of(base)
    try:
        return AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UnusableInput(f"base.model: the tokenizer of {base.model} cannot be loaded ({error})") from error


def compute_dtype(base: Base, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 if the device supports it natively, else float32 (emulated bf16 is slower than float32)."""
    match base.compute_dtype:
        case "bfloat16":
            return torch.bfloat16
        case "float32":
            return torch.float32
        case _:
            native = torch.cuda.is_bf16_supported(False) if device.type == "cuda" else _cpu_has_bf16()
            return torch.bfloat16 if native else torch.float32


def load_base(base: Base, device: torch.device, *, copy: Path | None = None, dtype: torch.dtype | None = None) -> Any:
    """Load the base's causal language model on `device`, frozen.

    Args:
        copy: a folder with a 4-bit copy of it.
        dtype: dtype of what is not quantized. None: the recipe's

    Raises:
        UnusableInput: it cannot be loaded, or is not quantized as required.
    """
    dtype = dtype or compute_dtype(base, device)
    source, revision = source_of(base) if copy is None else (str(copy), None)
    options: dict[str, Any] = {}
    if base.quantization == "nf4" and copy is None:  # a copy has its own config, and another one would be ignored
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=base.double_quantization,
            bnb_4bit_compute_dtype=dtype,
        )
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            source,
            revision=revision,
            dtype=dtype,
            device_map={"": device},
            attn_implementation="sdpa",  # for the checks; LossModel replaces it
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **options,
            **download_options(),
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UnusableInput(f"base.model: {base.model} cannot be loaded from {source} ({error})") from error
    if found["missing_keys"]:  # transformers initializes them randomly and only warns
        raise UnusableInput(f"base.model: {source} has no weights for {', '.join(sorted(found['missing_keys'])[:5])}")
    model.requires_grad_(False)
    model.config.use_cache = False
    if base.quantization == "nf4":
        quantize_experts(model, double_quantization=base.double_quantization)
        keep_weights_packed(model)
        check_quantized(model, dtype, nested=base.double_quantization)
    check_experts(model, dtype, quantized=base.quantization == "nf4", nested=base.double_quantization)
    return model


def keep_weights_packed(model: Any) -> None:
    """Stop bitsandbytes from repacking 4-bit weights in place at the first forward pass in eval mode.

    On a CPU with avx512_bf16, version 0.50.2 does this, and all later gradients are silently wrong.
    """
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False


def check_quantized(model: Any, dtype: torch.dtype, *, nested: bool = True) -> None:
    """Raises UnusableInput unless all matrices except embeddings, head and routers are NF4 and have the expected size.

    transformers silently leaves unknown modules in 16 bits. `check_experts` looks at a mixture's experts.
    """
    apart = (model.get_input_embeddings(), model.get_output_embeddings(), *routers(model).values())
    kept = {id(p) for module in apart for p in module.parameters()}
    kept |= {id(p) for module, _ in expert_weights(model).values() for p in module.parameters()}
    for name, layer in linear_layers(model).items():
        if not isinstance(layer, bnb.nn.Linear4bit):
            raise UnusableInput(f"base.quantization: {name} is {type(layer).__name__} and was not quantized")
        state = layer.weight.quant_state
        packed = layer.weight.numel() * layer.weight.element_size()
        if state.quant_type != "nf4" or packed * 2 != layer.in_features * layer.out_features:
            raise UnusableInput(f"base.quantization: {name} is {state.quant_type} in {packed} bytes, not NF4")
        if state.nested != nested:
            raise UnusableInput(f"base.double_quantization: {name} has {state.nested} for it, not {nested}")
        if layer.compute_dtype != dtype:
            raise UnusableInput(f"base.compute_dtype: {name} computes in {layer.compute_dtype}, not in {dtype}")
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2 and id(parameter) not in kept and parameter.dtype != torch.uint8:
            raise UnusableInput(f"base.quantization: {name} stayed in {parameter.dtype}")


def _cpu_has_bf16() -> bool:
    """Whether the processor supports bfloat16 natively."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:  # not Linux: unknown, so choose the safe answer
        return False
    return not NATIVE_BF16_FLAGS.isdisjoint(flags)
