"""Merges an adapter into its base in 16 bits, and proves that the written model gives the same logits.

    W' = W + s · B A      the product and the sum in float32, rounded to 16 bits once
    a trained router replaces the base's. Loading it into a 16-bit base rounds it, before anything is compared: near a
    tie between two experts, rounding can send a token to the other one

Not covered: 4-bit results. Rounding W' to 4 bits would lose most of the change. Adapters other than plain LoRA and
routers.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig
from transformers import AutoConfig

from trainer.adapters.verify import (
    LogitsCheck,
    answer_from,
    compare_logits,
    differing,
    logits_of,
    tensor_digests,
    verification_prompts,
)
from trainer.errors import UnusableInput
from trainer.model.base import load_skeleton, resolve_for, source_of
from trainer.model.load import load_base, load_tokenizer
from trainer.model.lora import load_adapter, trained_routers
from trainer.model.mixture import routers
from trainer.recipe import Base, Recipe
from trainer.run_dir import new_folder, sha256_file, write_manifest, write_text

DTYPES = {"auto": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
WEIGHTS = "adapter_model.safetensors"
SHARD_SIZE = "5GB"
KEPT_FILES = ("lineage.json", "training_args.json")
"""Files of the adapter folder that also say where the merged model comes from."""


@dataclass(frozen=True, kw_only=True)
class Merged:
    """A merged model that was written and checked."""

    folder: str
    base: str
    revision: str
    dtype: str
    modules: int
    """Number of changed matrices, routers included."""
    rounding: float
    """How much of the adapter's change is lost because the sums are rounded to 16 bits, as a share of its norm."""
    logits: LogitsCheck
    answer: str
    """What the written model answers to the first prompt."""


def merge(recipe: Recipe, adapter: Path, to: Path, *, dtype: str = "auto", card: str | None = None) -> Merged:
    """Write the merged model to a new folder. It appears only if it passed the checks.

    Args:
        dtype: a key of DTYPES. `auto` is the base's own if it has 16 bits, else bfloat16
        card: text of README.md

    Raises:
        UnusableInput: the adapter cannot be merged, the folder exists, or the written model differs.
    """
    if to.exists():
        raise UnusableInput(f"{to} exists already. Choose a new folder")
    check_plain(adapter)
    recipe = resolve_for(recipe, adapter)
    chosen, device = choose_dtype(recipe.base, dtype), choose_device(recipe.base)
    tokenizer = load_tokenizer(recipe.base)
    adapted = load_adapter(load_16_bit(recipe.base, chosen, device), adapter).eval()
    check_copies(adapted)
    expected = expect(adapted, verification_prompts(tokenizer))
    modules, rounding = merge_weights(adapted)
    model = adapted.unload()
    del adapted
    digests = tensor_digests(model)
    with new_folder(to) as temporary:
        model.config.use_cache = True  # training turns it off; whoever loads the model wants it
        model.save_pretrained(temporary, max_shard_size=SHARD_SIZE)
        tokenizer.save_pretrained(temporary)
        del model
        gc.collect()  # two copies of a 14B in 16 bits need 60 GB
        written = load_16_bit(Base(model=str(temporary)), chosen, device).eval()
        check = verify(written, expected, digests)
        merged = Merged(
            folder=str(to), base=recipe.base.model, revision=str(recipe.base.revision), dtype=_name(chosen),
            modules=modules, rounding=rounding, logits=check,
            answer=answer_from(written, tokenizer, expected.prompts[0]),
        )  # fmt: skip
        _describe(temporary, adapter, merged, card)
    return merged


@dataclass(frozen=True, kw_only=True)
class Expected:
    """Logits that the merged model is compared with."""

    prompts: list[list[int]]
    adapted: list[torch.Tensor]
    """Of base and adapter, before the merge."""
    base: list[torch.Tensor]
    """Of the base alone."""


def expect(adapted: Any, prompts: list[list[int]]) -> Expected:
    """Measure base and adapter before they are merged."""
    with_adapter = logits_of(adapted, prompts)
    with adapted.disable_adapter():
        return Expected(prompts=prompts, adapted=with_adapter, base=logits_of(adapted, prompts))


def verify(written: Any, expected: Expected, digests: Mapping[str, str]) -> LogitsCheck:
    """Check the model that was read back.

    Raises:
        UnusableInput: a tensor differs from what was to be written, or the logits differ from those before.
    """
    if names := differing(written, digests):
        raise UnusableInput(f"{', '.join(names[:3])} reads back differently. Check the disk. Nothing was written")
    check = compare_logits(expected.adapted, logits_of(written, expected.prompts), expected.base)
    if not check.same:
        raise UnusableInput(f"the merged model differs from base and adapter: {check.text()}. Nothing was written")
    return check


def _describe(folder: Path, adapter: Path, merged: Merged, card: str | None) -> None:
    """Write where the merged model comes from, and the manifest."""
    for name in KEPT_FILES:
        if (adapter / name).is_file():
            write_text(folder / name, (adapter / name).read_text(encoding="utf-8"))
    if card is not None:
        write_text(folder / "README.md", card)
    facts = {name: value for name, value in asdict(merged).items() if name not in ("folder", "answer")}
    write_manifest(folder, merged=facts | {"adapter_sha256": sha256_file(adapter / WEIGHTS)})


@torch.no_grad()
def merge_weights(adapted: Any) -> tuple[int, float]:
    """Add the adapter to the weights in place. Returns the number of changed matrices, and `Merged.rounding`.

    Raises:
        UnusableInput: a merged weight is not finite, for example because float16 cannot hold it.
    """
    torch.set_float32_matmul_precision("highest")
    layers = {name: module for name, module in adapted.named_modules() if hasattr(module, "lora_A")}
    lost = wanted = 0.0
    for name, layer in layers.items():
        (which,) = layer.lora_A.keys()
        weight = layer.base_layer.weight
        change = layer.scaling[which] * (layer.lora_B[which].weight.float() @ layer.lora_A[which].weight.float())
        merged = (weight.float() + change).to(weight.dtype)
        if not bool(torch.isfinite(merged).all()):
            raise UnusableInput(f"{name} is not finite after merging in {_name(weight.dtype)}. Use --dtype bfloat16")
        lost += float((merged.float() - weight.float() - change).square().sum())
        wanted += float(change.square().sum())
        weight.data.copy_(merged)
    return len(layers) + len(trained_routers(adapted)), (lost / wanted) ** 0.5 if wanted else 0.0


def check_copies(adapted: Any) -> None:
    """Raises UnusableInput if the adapter holds whole copies of other modules than routers."""
    known = {id(module) for module in routers(adapted.get_base_model()).values()}
    for name, wrapper in trained_routers(adapted).items():
        if id(wrapper.original_module) not in known:
            raise UnusableInput(f"the adapter holds a whole copy of {name}. Only routers can be merged like this")


def check_plain(adapter: Path) -> None:
    """Raises UnusableInput unless a folder holds plain LoRA on linear layers (and perhaps whole copies of modules)."""
    try:
        config = PeftConfig.from_pretrained(str(adapter))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UnusableInput(f"{adapter} has no readable adapter_config.json ({error})") from error
    if not isinstance(config, LoraConfig):
        raise UnusableInput(f"{adapter} is {config.peft_type}, not LoRA. It cannot be merged")
    others: Mapping[str, Any] = {
        "use_dora": config.use_dora, "lora_bias": config.lora_bias, "bias": config.bias != "none",
        "target_parameters": config.target_parameters, "fan_in_fan_out": config.fan_in_fan_out,
    }  # fmt: skip
    if found := [name for name, value in others.items() if value]:
        raise UnusableInput(f"{adapter} uses {', '.join(found)}. Only plain LoRA on linear layers can be merged")


def choose_dtype(base: Base, dtype: str) -> torch.dtype:
    """Return the dtype of the merged weights.

    Raises:
        UnusableInput: the base is stored in fewer than 16 bits.
    """
    source, revision = source_of(base)
    config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    if getattr(config, "quantization_config", None):
        raise UnusableInput(
            f"base.model: {base.model} is stored quantized, and merging into such weights loses the adapter. "
            "Name the base's 16-bit repository in the recipe"
        )
    own = config.dtype if config.dtype in DTYPES.values() else torch.bfloat16
    return DTYPES[dtype] or own


def choose_device(base: Base) -> torch.device:
    """Return the GPU if the weights in 16 bits fit there with room for a layer's product, else the CPU."""
    if torch.cuda.is_available():
        needed = 2.4 * sum(p.numel() for p in load_skeleton(base.model, str(base.revision)).parameters())
        if torch.cuda.mem_get_info()[0] > needed:
            return torch.device("cuda")
    return torch.device("cpu")


def load_16_bit(base: Base, dtype: torch.dtype, device: torch.device) -> Any:
    """Load a base without quantization."""
    model = load_base(replace(base, quantization="none"), device, dtype=dtype)
    if any(parameter.dtype != dtype for parameter in model.parameters()):
        raise UnusableInput(f"base.model: {base.model} could not be loaded in {_name(dtype)} throughout")
    return model


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
