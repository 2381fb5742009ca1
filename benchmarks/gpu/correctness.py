"""Check our gradients against those of PEFT's layers and full logits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from peft import get_peft_model
from world import World, computing_in, config_of, default_recipe, make_base, make_samples

from trainer.data.batches import collate, pack_budget, pack_samples
from trainer.data.encoder import TokenSample
from trainer.model.attention import choose_kernel
from trainer.model.checkpointing import checkpoint_layers
from trainer.model.fused import fuse
from trainer.model.load import compute_dtype
from trainer.model.lora import add_adapter, lora_config
from trainer.model.step import LossModel
from trainer.recipe import Recipe

Facts = dict[str, Any]

CASES = {
    "float32, everything kept": ("float32", "none", False, 1e-5),
    "float32, full, on the host": ("float32", "full", True, 1e-5),
    "bfloat16, selective": ("bfloat16", "selective", False, 3e-2),
}
"""Compute dtype, checkpointing, offload, and the largest relative error that a gradient may have."""


def check_gradients(world: World) -> Iterator[Facts]:
    """Compare our gradients with those of PEFT's layers in float32, with single samples and full logits.

    The relative error is ‖ours − theirs‖ / ‖theirs‖. Yields all finished cases after each case.
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
    rows: Facts = {}
    for name, (dtype, policy, offload, most) in CASES.items():
        ours = _our_gradients(config, _in_dtype(recipe, dtype), samples, device, policy, offload)
        assert ours.keys() == theirs.keys()
        errors = {key: float((ours[key] - theirs[key]).norm() / theirs[key].norm()) for key in theirs}
        whole = _norm(ours[key] - theirs[key] for key in theirs) / _norm(theirs.values())
        worst = max(errors, key=errors.__getitem__)
        passed = whole <= most and errors[worst] <= 2 * most  # also false for nan
        rows[name] = {"whole": whole, "worst": errors[worst], "worst_of": worst, "most": most, "passed": passed}
        yield {"rows": rows, "passed": all(row["passed"] for row in rows.values())}


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
    fuse(adapted)
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
