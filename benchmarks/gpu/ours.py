"""Measure the card's matrix rate, our step and its ablation, and check our gradients.

Each measuring function is the whole work of one process.
"""

from __future__ import annotations

import importlib.util
import shutil
import statistics
import subprocess
import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from peft import get_peft_model
from world import (
    ABLATION_BATCH,
    World,
    computing_in,
    config_of,
    default_recipe,
    device_name,
    forget,
    limit_memory,
    make_base,
    make_samples,
    memory_facts,
    planned,
    seconds_of,
    wait_for,
)

from trainer.data.batches import collate, pack_budget, pack_samples
from trainer.data.encoder import TokenSample
from trainer.fit.optimizer import make_optimizer
from trainer.fit.trainable import make_trainable
from trainer.model.attention import choose_kernel
from trainer.model.checkpointing import checkpoint_layers
from trainer.model.fused_lora import fuse_adapter
from trainer.model.load import compute_dtype
from trainer.model.lora import add_adapter, lora_config
from trainer.model.memory import is_out_of_memory
from trainer.model.step import LossModel
from trainer.plan.cards import CARDS, GIB, card_named
from trainer.plan.choose import element_bytes
from trainer.plan.show import summary
from trainer.plan.speed import flops_per_token, tokens_per_second
from trainer.plan.static import sizes_of
from trainer.recipe import Recipe

Facts = dict[str, Any]


# --- the card -------------------------------------------------------------------------------------------------


def measure_rate(world: World) -> Facts:
    """Multiply random bfloat16 matrices of the model's shapes. The rate is all FLOPs over the sum of median seconds."""
    device, config = world.torch_device, config_of(world, 1)
    tokens = 256 if world.tiny else 16_384
    pairs = [(config.hidden_size, config.intermediate_size), (config.intermediate_size, config.hidden_size),
             (config.hidden_size, config.hidden_size)]  # fmt: skip
    shapes, flops, seconds = {}, 0, 0.0
    for inputs, outputs in pairs:
        left = torch.randn(tokens, inputs, device=device).bfloat16()
        right = torch.randn(inputs, outputs, device=device).bfloat16()
        times = [seconds_of(lambda a=left, b=right: a @ b, device) for _ in range(15)]
        median = statistics.median(times[5:])
        flops, seconds = flops + 2 * tokens * inputs * outputs, seconds + median
        shapes[f"{tokens:,} × {inputs:,} × {outputs:,}"] = 2 * tokens * inputs * outputs / median / 1e12
    on_card = device.type == "cuda"
    return {
        "name": device_name(device),
        "torch": torch.__version__,
        "driver": _driver() if on_card else None,
        "capability": ".".join(map(str, torch.cuda.get_device_capability())) if on_card else None,
        "total_gib": torch.cuda.mem_get_info()[1] / GIB if on_card else None,
        "shapes": shapes,
        "tflops": flops / seconds / 1e12,
    }


def _driver() -> str | None:
    if (tool := shutil.which("nvidia-smi")) is None:
        return None
    asked = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(asked, capture_output=True, text=True).stdout.split("\n")[0] or None


# --- the step -------------------------------------------------------------------------------------------------


def measure_step(world: World, *, full: bool) -> Facts:
    """Measure the default recipe's optimizer step as the trainer takes it.

    With `full`, every sample has the maximum length.
    """
    limit_memory(world)
    device, config = world.torch_device, config_of(world, world.layers)
    shape, recipe, plan = planned(world, config, default_recipe(world))
    torch.set_float32_matmul_precision("high")
    model, optimizer = make_trainable(make_base(config, recipe.base, device), recipe, device, parent=None, seed=0)
    window = recipe.training.batch_size * recipe.training.gradient_accumulation_steps
    samples = make_samples(window * (world.steps + 1), recipe, config.vocab_size, full=full)
    timed = list(_steps(model, optimizer, samples, recipe, device, window))
    rates = [tokens / seconds for tokens, seconds, _ in timed[1:]]
    counted = [sample.tokens for sample in samples[window:]]
    as_drawn = _of_length(recipe, round(sum(n * n for n in counted) / sum(counted)))
    card = CARDS[card_named(device_name(device))]
    card = replace(card, tflops=world.tflops or card.tflops)
    sizes = sizes_of(recipe, element=element_bytes(recipe))
    flops, speed = flops_per_token(shape, as_drawn, plan.choice), statistics.median(rates)
    return {
        "way": summary(plan, recipe),
        "kernel": model.kernel,
        "tokens_per_second": speed,
        "tokens_per_step": statistics.mean(tokens for tokens, _, _ in timed[1:]),
        "gflop_per_token": flops / 1e9,
        "share_of_rate": speed * flops / 1e12 / world.tflops if world.tflops else None,
        "loss": timed[-1][2],
        "planned_tokens_per_second": tokens_per_second(
            shape, as_drawn, plan.choice, sizes, card, passes=plan.accumulation, exchange=plan.exchange
        ),
        "planned_allocated_gib": plan.allocated_bytes / GIB,
        "planned_peak_gib": plan.peak_bytes / GIB,
        **memory_facts(device),
    }


def _of_length(recipe: Recipe, tokens: int) -> Recipe:
    """Return the recipe with another maximum length, for the arithmetic only.

    The work of attention depends on the mean sample length, taken over tokens.
    """
    return replace(recipe, data=replace(recipe.data, max_length=tokens))


def _steps(
    model: LossModel, optimizer: Any, samples: list[TokenSample], recipe: Recipe, device: torch.device, window: int
) -> Iterator[tuple[int, float, float]]:
    """Yield the tokens, seconds and mean loss of each optimizer step, taken as in trainer/fit/passes.py and loop.py."""
    model.train()
    dtype = compute_dtype(recipe.base, device)
    for start in range(0, len(samples), window):
        members = range(start, start + window)
        supervised = sum(samples[i].supervised for i in members)
        wait_for(device)
        began, total = perf_counter(), torch.zeros((), device=device)
        for pack in pack_samples(members, samples, budget=pack_budget(recipe), rank=0, world=1):
            batch = collate([samples[i] for i in pack]).to(device)
            with computing_in(dtype, device):
                loss, _ = model(batch)
            (loss / supervised).backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.training.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        mean = float(total) / supervised
        wait_for(device)
        yield sum(samples[i].tokens for i in members), perf_counter() - began, mean


# --- one thing changed at a time ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The step with some of its parts replaced."""

    checkpointing: str = "selective"
    offload: bool = False
    fused: bool = True
    kernel: str | None = None
    """None means the kernel that the trainer chooses."""
    loss: Callable[..., Any] | None = None
    compiled: bool = False


def _torchs_loss(hidden: torch.Tensor, head: Any, targets: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
    """Compute torch's own fused loss at the supervised positions, as our loss does."""
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=512, chunking_method=None, acc_policy="balanced")
    return F.linear_cross_entropy(
        hidden.to(head.weight.dtype), head.weight, targets, reduction="sum", options=options
    ), None


def variants() -> dict[str, Variant]:
    """Return the variants by name. The others are compared with the first."""
    found = {
        "selective": Variant(),
        "none": Variant(checkpointing="none"),
        "full": Variant(checkpointing="full"),
        "selective, on the host": Variant(offload=True),
        "full, on the host": Variant(checkpointing="full", offload=True),
        "PEFT's layers": Variant(fused=False),
        "attention: one document after the other": Variant(kernel="each"),
        "attention: torch's varlen kernel": Variant(kernel="torch_varlen"),
        "attention: flash-attn": Variant(kernel="flash_attn"),
        "torch's linear_cross_entropy": Variant(loss=_torchs_loss),
        "norms and SiLU compiled": Variant(compiled=True),
    }
    return found


def _missing(variant: Variant, device: torch.device) -> str | None:
    """Return why a variant cannot run here, or None if it can."""
    if variant.kernel in ("torch_varlen", "flash_attn") and device.type != "cuda":
        return "needs a CUDA device"
    if variant.kernel == "flash_attn" and importlib.util.find_spec("flash_attn") is None:
        return "flash-attn is not installed"
    if variant.loss is not None and not hasattr(F, "linear_cross_entropy"):
        return f"torch {torch.__version__} does not have it"
    return None


def measure_variants(world: World, *, rounds: int) -> Facts:
    """Measure each variant on a model with fewer layers, in turn, and return the median tokens per second."""
    limit_memory(world)
    rates: dict[str, list[float]] = {name: [] for name in variants()}
    failed: dict[str, str] = {}
    peaks: dict[str, Facts] = {}
    for _ in range(rounds):
        for name, variant in variants().items():
            if reason := failed.get(name) or _missing(variant, world.torch_device):
                failed[name] = reason
                continue
            try:
                rates[name].append(_variant_speed(world, variant))
                peaks[name] = memory_facts(world.torch_device)
            except Exception as error:  # noqa: BLE001 - a failed variant is reported, and the others continue
                failed[name] = "out of memory" if is_out_of_memory(error) else f"{type(error).__name__}: {error}"
            forget(world.torch_device)
    rows = {
        name: {"tokens_per_second": statistics.median(found), **peaks[name]} for name, found in rates.items() if found
    }
    return {"layers": world.ablation_layers, "rows": rows, "not_run": failed}


def _variant_speed(world: World, variant: Variant) -> float:
    device, config = world.torch_device, config_of(world, world.ablation_layers)
    recipe = default_recipe(world)
    batch = min(ABLATION_BATCH, recipe.training.batch_size)
    recipe = replace(recipe, training=replace(recipe.training, batch_size=batch))
    torch.set_float32_matmul_precision("high")
    adapted = add_adapter(make_base(config, recipe.base, device), recipe.lora, parent=None, seed=0)
    if variant.fused:
        fuse_adapter(adapted)
    if variant.compiled:
        _compile_elementwise(adapted)
    checkpoint_layers(adapted, variant.checkpointing, offload=variant.offload)
    optimizer = make_optimizer(adapted.parameters(), recipe.training)
    kernel = variant.kernel or choose_kernel(recipe.base, device, compute_dtype(recipe.base, device))
    model = LossModel(adapted, kernel=kernel)
    window = batch * recipe.training.gradient_accumulation_steps
    samples = make_samples(window * (world.steps + 1), recipe, config.vocab_size, full=False)
    with _with_loss(variant.loss):
        timed = list(_steps(model, optimizer, samples, recipe, device, window))
    return statistics.median(tokens / seconds for tokens, seconds, _ in timed[1:])


def _with_loss(loss: Callable[..., Any] | None) -> AbstractContextManager[Any]:
    return nullcontext() if loss is None else patch("trainer.model.step.supervised_loss", loss)


def _compile_elementwise(model: Any) -> None:
    """Compile one function per class, for inputs of any length."""
    kinds = {type(m) for m in model.modules() if type(m).__name__.endswith(("RMSNorm", "SiLUActivation", "SiLU"))}
    compiled = {kind: torch.compile(kind.forward, dynamic=True) for kind in kinds}
    for module in model.modules():
        if type(module) in compiled:
            module.forward = types.MethodType(compiled[type(module)], module)


# --- correctness ----------------------------------------------------------------------------------------------

CASES = {
    "float32, everything kept": ("float32", "none", False, 1e-5),
    "float32, full, on the host": ("float32", "full", True, 1e-5),
    "bfloat16, selective": ("bfloat16", "selective", False, 3e-2),
}
"""Compute dtype, checkpointing, offload, and the largest relative error that a gradient may have."""


def check_gradients(world: World) -> Facts:
    """Compare our gradients with those of PEFT's layers in float32, with single samples and full logits.

    The relative error is ‖ours − theirs‖ / ‖theirs‖.
    """
    device = world.torch_device
    narrow = {"hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 2, "intermediate_size": 1408,
              "vocab_size": 32_768}  # fmt: skip
    config = config_of(world, 4, **({} if world.tiny else narrow))
    recipe = default_recipe(world)
    recipe = replace(recipe, lora=replace(recipe.lora, rank=16, alpha=32, dropout=0.0))
    torch.set_float32_matmul_precision("highest")
    samples = make_samples(8, recipe, config.vocab_size, full=False)
    theirs = _peft_gradients(config, _in_dtype(recipe, "float32"), samples, device)
    rows = {}
    for name, (dtype, policy, offload, most) in CASES.items():
        ours = _our_gradients(config, _in_dtype(recipe, dtype), samples, device, policy, offload)
        assert ours.keys() == theirs.keys()
        errors = {key: float((ours[key] - theirs[key]).norm() / theirs[key].norm()) for key in theirs}
        whole = _norm(ours[key] - theirs[key] for key in theirs) / _norm(theirs.values())
        worst = max(errors, key=errors.__getitem__)
        passed = whole <= most and errors[worst] <= 2 * most  # also false for nan
        rows[name] = {"whole": whole, "worst": errors[worst], "worst_of": worst, "most": most, "passed": passed}
    return {"rows": rows, "passed": all(row["passed"] for row in rows.values())}


def _in_dtype(recipe: Recipe, dtype: str) -> Recipe:
    return replace(recipe, base=replace(recipe.base, compute_dtype=dtype))


def _norm(tensors: Any) -> float:
    return sum(float(tensor.double().square().sum()) for tensor in tensors) ** 0.5


def _peft_gradients(config: Any, recipe: Recipe, samples: list[TokenSample], device: torch.device) -> Facts:
    model = _scattered(get_peft_model(make_base(config, recipe.base, device), lora_config(recipe.lora)))
    supervised = sum(sample.supervised for sample in samples)
    for sample in samples:
        logits = model(input_ids=sample.ids.long()[None].to(device)).logits[0, :-1].float()
        loss = F.cross_entropy(logits, sample.labels[1:].long().to(device), reduction="sum")
        (loss / supervised).backward()
    return _gradients(model)


def _our_gradients(
    config: Any, recipe: Recipe, samples: list[TokenSample], device: torch.device, policy: str, offload: bool
) -> Facts:
    adapted = _scattered(add_adapter(make_base(config, recipe.base, device), recipe.lora, parent=None, seed=0))
    fuse_adapter(adapted)
    checkpoint_layers(adapted, policy, offload=offload)
    dtype = compute_dtype(recipe.base, device)
    model = LossModel(adapted, kernel=choose_kernel(recipe.base, device, dtype)).train()
    supervised = sum(sample.supervised for sample in samples)
    with patch("trainer.model.loss.CHUNK_LOGITS", 100 * config.vocab_size):  # several chunks per pack
        for pack in pack_samples(range(len(samples)), samples, budget=pack_budget(recipe), rank=0, world=1):
            with computing_in(dtype, device):
                loss, _ = model(collate([samples[i] for i in pack]).to(device))
            (loss / supervised).backward()
    return _gradients(adapted)


def _scattered(adapted: Any) -> Any:
    """Set the adapter to random weights. A new adapter has B = 0, which leaves A without a gradient."""
    generator = torch.Generator().manual_seed(3)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return adapted


def _gradients(adapted: Any) -> Facts:
    return {name: p.grad.detach().float() for name, p in adapted.named_parameters() if p.requires_grad}
