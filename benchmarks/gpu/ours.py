"""Measure the card's matrix rate and our step. Each measuring function is the whole work of one process."""

from __future__ import annotations

import shutil
import statistics
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from time import perf_counter
from typing import Any

import torch
from costs import OPTIMIZER, costs_of
from torch.profiler import record_function
from world import (
    World,
    computing_in,
    config_of,
    default_recipe,
    device_name,
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
from trainer.fit.trainable import make_trainable
from trainer.model.load import compute_dtype
from trainer.model.step import LossModel
from trainer.plan.cards import CARDS, GIB, card_named
from trainer.plan.choose import element_bytes
from trainer.plan.memory import CUDA_BYTES
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


def measure_step(world: World, *, full: bool, at_once: bool = False, costs: bool = False) -> Iterator[Facts]:
    """Measure the default recipe's optimizer step as the trainer takes it. Then, with `costs`, what its parts cost.

    Args:
        full: every sample has the maximum length
        at_once: the step is one micro-batch of the recipe's size
    """
    limit_memory(world)
    device, config = world.torch_device, config_of(world, world.layers)
    shape, recipe, plan = planned(world, config, default_recipe(world), at_once=at_once)
    torch.set_float32_matmul_precision("high")
    model, optimizer = make_trainable(make_base(config, recipe.base, device), recipe, device, parent=None, seed=0)
    window = recipe.training.batch_size * recipe.training.gradient_accumulation_steps
    samples = make_samples(window * (world.steps + 1), recipe, config.vocab_size, full=full)
    timed = list(take_steps(model, optimizer, samples, recipe, device, window))
    rates = [tokens / seconds for tokens, seconds, _ in timed[1:]]
    counted = [sample.tokens for sample in samples[window:]]
    as_drawn = _of_length(recipe, round(sum(n * n for n in counted) / sum(counted)))
    card = CARDS[card_named(device_name(device))]
    card = replace(card, tflops=world.tflops or card.tflops)
    sizes = sizes_of(recipe, element=element_bytes(recipe))
    flops, speed = flops_per_token(shape, as_drawn, plan.choice), statistics.median(rates)
    facts = {
        "way": summary(plan, recipe),
        "micro_batch": f"{recipe.training.batch_size} × {recipe.data.max_length:,}",
        "rank": recipe.lora.rank,
        "kernel": model.kernel,
        "tokens_per_second": speed,
        "tokens_per_step": statistics.mean(tokens for tokens, _, _ in timed[1:]),
        "gflop_per_token": flops / 1e9,
        "share_of_rate": speed * flops / 1e12 / world.tflops if world.tflops else None,
        "losses": [loss for _, _, loss in timed],
        "planned_tokens_per_second": tokens_per_second(
            shape, as_drawn, plan.choice, sizes, card, passes=plan.accumulation, exchange=plan.exchange
        ),
        "planned_allocated_gib": plan.allocated_bytes / GIB,
        "planned_peak_gib": plan.peak_bytes / GIB,
        "planned_cuda_gib": CUDA_BYTES / GIB,
        **memory_facts(device),
    }
    yield facts
    if costs:
        last = samples[-window:]
        found = costs_of(
            lambda: list(take_steps(model, optimizer, last, recipe, device, window)),
            rank=recipe.lora.rank,
            vocabulary=config.vocab_size,
            device=device,
        )
        calls, passes = found.pop("attention_calls"), world.layers * _attended(model.kernel, last, recipe)
        if calls:
            found["flops"]["attention"] = _attention_flops(last, config) * (calls / passes + 2.5)
        yield {**facts, "costs": {**found, "step_seconds": timed[-1][1]}}


def _attended(kernel: str, samples: list[TokenSample], recipe: Recipe) -> int:
    """Return how often a layer attends in one forward pass of all samples: once for each document or pack."""
    packs = pack_samples(range(len(samples)), samples, budget=pack_budget(recipe), rank=0, world=1)
    return len(samples) if kernel == "each" else sum(1 for _ in packs)


def _attention_flops(samples: list[TokenSample], config: Any) -> float:
    """Return the FLOPs of causal attention, forward. Backward takes 2.5 times as many (trainer/plan/speed.py)."""
    return 2.0 * sum(sample.tokens**2 for sample in samples) * config.num_hidden_layers * config.hidden_size


def _of_length(recipe: Recipe, tokens: int) -> Recipe:
    """Return the recipe with another maximum length, for the arithmetic only.

    The work of attention depends on the mean sample length, taken over tokens.
    """
    return replace(recipe, data=replace(recipe.data, max_length=tokens))


def take_steps(
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
        with record_function(OPTIMIZER):
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.training.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
        mean = float(total) / supervised
        wait_for(device)
        yield sum(samples[i].tokens for i in members), perf_counter() - began, mean
