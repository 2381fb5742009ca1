"""What all measurements share: the shape, a 4-bit base with random weights, samples, the recipe and its plan."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import bitsandbytes as bnb
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Qwen2Config
from transformers.integrations.bitsandbytes import replace_with_bnb_linear
from transformers.quantizers import AutoHfQuantizer

from trainer.data.encoder import IGNORED, TokenSample
from trainer.model.load import check_quantized, compute_dtype, keep_weights_packed
from trainer.model.shapes import known_architecture
from trainer.plan.cards import CARDS, GIB, card_named
from trainer.plan.choose import Plan, fastest_fitting, possible_plans, smallest_plan, with_choice
from trainer.plan.model import Model, read_model
from trainer.recipe import Base, Recipe
from trainer.recipe_file import load_recipe, with_overrides

ROOT = Path(__file__).resolve().parents[2]
MEAN_TOKENS = 800
"""Mean length of a sample before it is cut. Lengths are log-normal, like those of source files."""
SPREAD = 0.9
"""Standard deviation of the logarithm of the length."""
PROMPT_FRACTION = 0.35
"""Share of a sample's tokens without loss: the middle of the recipe's context_fraction."""
ABLATION_BATCH = 2
TINY = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 256,
        "vocab_size": 4096}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class World:
    """The benchmark's options, which every process receives."""

    device: str
    tiny: bool
    layers: int
    ablation_layers: int
    steps: int
    vram_gib: float
    tflops: float | None = None
    """The measured matrix rate; None before it is measured."""

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.device)


def config_of(world: World, layers: int, **changes: Any) -> Any:
    """Return Qwen2.5 14B's configuration with another number of layers. It is narrow in the self-test."""
    known = known_architecture("14B").config.to_dict()
    return Qwen2Config(**{**known, **(TINY if world.tiny else {}), "num_hidden_layers": layers, "layer_types": None,
                          "use_cache": False, **changes})  # fmt: skip


def default_recipe(world: World) -> Recipe:
    """Return recipes/qwen-5090.yaml. In the self-test, lengths, rank and batches are small."""
    recipe = with_overrides(load_recipe(ROOT / "recipes" / "qwen-5090.yaml"), {"base.compute_dtype": "bfloat16"})
    small = {"data.max_length": 128, "lora.rank": 8, "lora.alpha": 16, "training.batch_size": 2,
             "training.gradient_accumulation_steps": 2}  # fmt: skip
    return with_overrides(recipe, small) if world.tiny else recipe


def planned(world: World, config: Any, recipe: Recipe, *, at_once: bool = False) -> tuple[Model, Recipe, Plan]:
    """Return the model, the recipe with the plan's choice, and the fastest plan for the card at its measured rate.

    With `at_once`, the step is one micro-batch of the recipe's size. The plan decides only how it fits.
    """
    if at_once:
        recipe = with_overrides(recipe, {"training.gradient_accumulation_steps": 1})
    with torch.device("meta"):
        model = read_model(AutoModelForCausalLM.from_config(config), recipe.lora)
    card = CARDS[card_named(device_name(world.torch_device))]
    card = replace(card, tflops=world.tflops or card.tflops)
    plans = [plan for plan in possible_plans(model, recipe, card) if plan.accumulation == 1 or not at_once]
    plan = fastest_fitting(plans, int(world.vram_gib * GIB)) or smallest_plan(plans)
    return model, with_choice(recipe, plan), plan


def make_base(config: Any, base: Base, device: torch.device) -> Any:
    """Return the model that trainer.model.load.load_base would load, with random weights.

    One matrix after the other is drawn, quantized on the device and freed, so the 16-bit model never exists.
    """
    dtype = compute_dtype(base, device)
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=base.double_quantization,
        bnb_4bit_compute_dtype=dtype,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    replace_with_bnb_linear(model, ["lm_head"], quantization)
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config).to(device)
    torch.manual_seed(0)
    for name, parameter in list(model.named_parameters()):
        owner = model.get_submodule(name.rpartition(".")[0])
        setattr(owner, name.rpartition(".")[2], _drawn(name, parameter, owner, config, dtype, device))
    model.requires_grad_(False)
    model.config.quantization_config = quantization
    model.is_loaded_in_4bit = model.is_quantized = True  # the attributes that transformers sets on a loaded model
    model.quantization_method = quantization.quant_method
    model.hf_quantizer = AutoHfQuantizer.from_config(quantization, pre_quantized=False)
    keep_weights_packed(model)
    check_quantized(model, dtype)
    return model


def _drawn(name: str, parameter: Any, owner: Any, config: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """Return one random parameter.

    Matrices that write to the residual stream are scaled by the depth, so that activations stay finite. The values are
    drawn in float32 and rounded to bfloat16, so that a model of either dtype has the same weights.
    """
    if parameter.ndim == 1:
        value = torch.full(parameter.shape, float("norm" in name), dtype=dtype, device=device)
        return torch.nn.Parameter(value, requires_grad=False)
    std = config.initializer_range
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        std /= math.sqrt(2 * config.num_hidden_layers)
    shape = (owner.out_features, owner.in_features) if hasattr(owner, "out_features") else parameter.shape
    value = (torch.randn(shape, device=device) * std).bfloat16().to(dtype)
    if not isinstance(owner, bnb.nn.Linear4bit):
        return torch.nn.Parameter(value, requires_grad=False)
    settings = {"compress_statistics": parameter.compress_statistics, "quant_type": parameter.quant_type}
    return bnb.nn.Params4bit(value, requires_grad=False, module=owner, **settings).to(device)


def make_samples(count: int, recipe: Recipe, vocabulary: int, *, full: bool) -> list[TokenSample]:
    """Return samples of random ids, with the lengths of source files.

    With `full`, every sample has the maximum length, and all its tokens have a loss.
    """
    generator = torch.Generator().manual_seed(7)
    longest = recipe.data.max_length
    location = math.log(MEAN_TOKENS * longest / 4096) - SPREAD**2 / 2
    found = []
    for number in range(count):
        drawn = math.exp(location + SPREAD * float(torch.randn((), generator=generator)))
        length = longest if full else min(longest, max(16, round(drawn)))
        ids = torch.randint(vocabulary, (length,), generator=generator, dtype=torch.int32)
        labels = ids.clone()
        labels[: 1 if full else int(PROMPT_FRACTION * length)] = IGNORED
        supervised = int((labels[1:] != IGNORED).sum())
        found.append(TokenSample(file_id=number, ids=ids, labels=labels, supervised=supervised))
    return found


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def limit_memory(world: World) -> None:
    """Limit torch's allocator to the memory of the card that the plan is for."""
    if world.device == "cuda":
        torch.cuda.set_per_process_memory_fraction(min(1.0, world.vram_gib * GIB / torch.cuda.mem_get_info()[1]))


def memory_facts(device: torch.device) -> dict[str, float]:
    """Return the memory peaks in GiB since the last `forget`, or nothing on a CPU.

    `outside_gib` is the current size of CUDA's own and paged memory.
    """
    if device.type != "cuda":
        return {}
    free, total = torch.cuda.mem_get_info()
    return {
        "allocated_gib": torch.cuda.max_memory_allocated() / GIB,
        "reserved_gib": torch.cuda.max_memory_reserved() / GIB,
        "outside_gib": (total - free - torch.cuda.memory_reserved()) / GIB,
    }


def forget(device: torch.device) -> None:
    """Free unused memory and reset the peak."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def wait_for(device: torch.device) -> None:
    """Wait until the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], Any], device: torch.device) -> float:
    """Return the seconds of one call, measured by the device's own clock if it has one."""
    if device.type != "cuda":
        began = perf_counter()
        work()
        return perf_counter() - began
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000


@contextmanager
def computing_in(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Apply the autocast that accelerate puts around the model."""
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        yield
