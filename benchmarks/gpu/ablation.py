"""Measure the step with one of its parts replaced at a time."""

from __future__ import annotations

import importlib.util
import statistics
import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from ours import take_steps
from world import (
    ABLATION_BATCH,
    World,
    config_of,
    default_recipe,
    forget,
    limit_memory,
    make_base,
    make_samples,
    memory_facts,
)

from trainer.fit.optimizer import make_optimizer
from trainer.model.attention import choose_kernel
from trainer.model.checkpointing import checkpoint_layers
from trainer.model.fused import fuse
from trainer.model.load import compute_dtype
from trainer.model.lora import add_adapter
from trainer.model.memory import is_out_of_memory
from trainer.model.step import LossModel

Facts = dict[str, Any]


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


def measure_variants(world: World, *, rounds: int) -> Iterator[Facts]:
    """Measure each variant on a model with fewer layers, in turn. Yields the medians so far after each variant."""
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
                key: {"tokens_per_second": statistics.median(found), **peaks[key]}
                for key, found in rates.items()
                if found
            }
            yield {"layers": world.ablation_layers, "rows": rows, "left_out": failed}


def _variant_speed(world: World, variant: Variant) -> float:
    device, config = world.torch_device, config_of(world, world.ablation_layers)
    recipe = default_recipe(world)
    batch = min(ABLATION_BATCH, recipe.training.batch_size)
    recipe = replace(recipe, training=replace(recipe.training, batch_size=batch))
    torch.set_float32_matmul_precision("high")
    adapted = add_adapter(make_base(config, recipe.base, device), recipe.lora, parent=None, seed=0)
    if variant.fused:
        fuse(adapted, compiled=variant.compiled)
    if variant.compiled:
        _compile_elementwise(adapted)
    checkpoint_layers(adapted, variant.checkpointing, offload=variant.offload)
    optimizer = make_optimizer(adapted.parameters(), recipe.training)
    kernel = variant.kernel or choose_kernel(recipe.base, device, compute_dtype(recipe.base, device))
    model = LossModel(adapted, kernel=kernel)
    window = batch * recipe.training.gradient_accumulation_steps
    samples = make_samples(window * (world.steps + 1), recipe, config.vocab_size, full=False)
    with _with_loss(variant.loss):
        timed = list(take_steps(model, optimizer, samples, recipe, device, window))
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
