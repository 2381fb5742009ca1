"""Chooses the fastest plan that fits, or suggests changes if none does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from trainer.plan.cards import GIB, Card
from trainer.plan.exchange import Exchange, Network, exchange
from trainer.plan.memory import Choice, all_to_all_bytes, host_bytes, memory_lines, peak_bytes
from trainer.plan.model import Model
from trainer.plan.sharding import strategies
from trainer.plan.speed import flops_per_token, tokens_per_second
from trainer.plan.static import Line, Sizes, sizes_of, static_lines
from trainer.recipe import Recipe

SAME_SPEED = 0.99
"""Plans with at least this share of the highest speed count as equally fast."""
MAY_BE_WRONG = 0.05
"""Share of its peak that a plan may be wrong by. benchmarks/results/nvidia-h200.md has what cards took."""
LEAST_LENGTH = 256
LEAST_RANK = 8
EIGHT_EACH = Network()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One way to run the recipe's step on a card."""

    choice: Choice
    strategy: str
    """What each card holds only a share of: ddp, fsdp2, zero2 or zero3."""
    sequence: int
    """Cards that share a pack."""
    exchange: Exchange
    accumulation: int
    """Micro-batches per optimizer step and process. Processes that share packs count as one."""
    lines: list[Line]
    peak_bytes: int
    host_bytes: int
    tokens_per_second: float
    """Of one card."""
    flops_per_token: float

    @property
    def step_seconds(self) -> float:
        """Seconds of a step."""
        return self.accumulation * self.choice.micro_batch_tokens / (self.tokens_per_second * self.sequence)

    @property
    def allocated_bytes(self) -> int:
        """Expected value of torch.cuda.max_memory_allocated: torch's own tensors only."""
        return sum(line.bytes for line in self.lines if line.counted and line.kind not in ("card", "paged"))


def possible_plans(model: Model, recipe: Recipe, card: Card, network: Network = EIGHT_EACH) -> list[Plan]:
    """Return all plans that the recipe allows, fastest first."""
    sizes = sizes_of(recipe, element=element_bytes(recipe))
    plans = [
        _plan(model, divided, samples, choice, sizes, card, network)
        for divided in strategies(recipe)
        for samples, choice in _choices(recipe)
    ]
    return sorted(plans, key=lambda plan: (-round(plan.tokens_per_second, 1), plan.peak_bytes))


def fastest_fitting(plans: list[Plan], vram_bytes: int) -> Plan | None:
    """Return the fastest plan that fits. Among equally fast ones, prefer no offloading, then large micro-batches.

    A pass of one sample cannot be halved when memory runs out. Such a plan needs room for what a plan may be wrong by,
    unless nothing else fits.
    """
    fitting = [plan for plan in plans if plan.peak_bytes <= vram_bytes]
    most = max((plan.accumulation for plan in plans), default=0)
    safe = [plan for plan in fitting if plan.accumulation < most or plan.peak_bytes * (1 + MAY_BE_WRONG) <= vram_bytes]
    fitting = safe or fitting
    fastest = max((plan.tokens_per_second for plan in fitting), default=0.0)
    as_fast = [plan for plan in fitting if plan.tokens_per_second >= SAME_SPEED * fastest]
    return min(as_fast, key=lambda plan: (plan.choice.offload, plan.accumulation), default=None)


def smallest_plan(plans: list[Plan]) -> Plan:
    """Return the plan with the lowest memory."""
    return min(plans, key=lambda plan: plan.peak_bytes)


def with_choice(recipe: Recipe, plan: Plan) -> Recipe:
    """Apply a plan to the recipe. The optimizer step stays the same."""
    training = replace(
        recipe.training,
        batch_size=plan.choice.micro_batch_tokens // recipe.data.max_length,
        gradient_accumulation_steps=plan.accumulation,
        checkpointing=plan.choice.checkpointing,
        offload_checkpoints="always" if plan.choice.offload else "never",
    )
    evaluation = replace(
        recipe.evaluation, batch_size=min(recipe.evaluation.batch_size, training.batch_size)
    )  # evaluation without gradients needs less
    return replace(recipe, training=training, evaluation=evaluation)


def changes_that_fit(model: Model, recipe: Recipe, card: Card, vram_bytes: int) -> list[str]:
    """Return single changes that make a plan fit, in words. The last one is a card with enough memory."""
    found: dict[str, str] = {}
    for key, changed in _smaller(model, recipe):
        if key not in found and fastest_fitting(possible_plans(model, changed, card), vram_bytes) is not None:
            section, _, name = key.partition(".")
            found[key] = f"{key}: {getattr(getattr(changed, section), name)}"
    needed = smallest_plan(possible_plans(model, recipe, card)).peak_bytes / GIB
    return [*found.values(), f"a card with {needed:.1f} GiB"]


def trained_numbers(model: Model, recipe: Recipe) -> int:
    """Number of the adapter's parameters."""
    return recipe.lora.rank * sum(m.inputs + m.outputs for m in model.matrices if m.adapted)


def element_bytes(recipe: Recipe) -> int:
    """Bytes per number in the compute dtype on a card."""
    return 4 if recipe.base.compute_dtype == "float32" else 2


def _choices(recipe: Recipe) -> Iterator[tuple[int, Choice]]:
    """Yield micro-batch sizes (in samples of maximum length) with each allowed policy."""
    training = recipe.training
    policies = {"auto": ("none", "selective", "full")}.get(training.checkpointing, (training.checkpointing,))
    offloads = {"auto": (False, True), "always": (True,), "never": (False,)}[training.offload_checkpoints]
    step = training.batch_size * training.gradient_accumulation_steps
    for samples in range(1, training.batch_size + 1):
        for policy in policies:
            for offload in offloads:
                if step % samples == 0 and not (policy == "none" and offload):
                    tokens = samples * recipe.data.max_length
                    yield samples, Choice(micro_batch_tokens=tokens, checkpointing=policy, offload=offload)


def _plan(
    model: Model, recipe: Recipe, samples: int, choice: Choice, sizes: Sizes, card: Card, network: Network
) -> Plan:
    lines, distributed = memory_lines(model, recipe, choice, sizes), recipe.distributed
    step = recipe.training.batch_size * recipe.training.gradient_accumulation_steps
    whole = static_lines(model, recipe, sizes)
    exchanged = exchange(distributed.strategy, whole, trained_numbers(model, recipe), card, distributed.cards, network)
    of_pack = all_to_all_bytes(model, choice, sizes) / network.bytes_per_second(card, sizes.sequence)
    exchanged = replace(exchanged, open=exchanged.open + of_pack)
    speed = tokens_per_second(model, recipe, choice, sizes, card, passes=step // samples, exchange=exchanged)
    return Plan(
        choice=choice,
        strategy=distributed.strategy,
        sequence=sizes.sequence,
        exchange=exchanged,
        accumulation=step // samples,
        lines=lines,
        peak_bytes=peak_bytes(lines),
        host_bytes=host_bytes(model, choice.of_card(sizes), sizes),
        tokens_per_second=speed,
        flops_per_token=flops_per_token(model, recipe, choice),
    )


def _smaller(model: Model, recipe: Recipe) -> Iterator[tuple[str, Recipe]]:
    """Yield recipes with one change, by key, mildest change first."""
    if recipe.base.quantization == "none":
        yield "base.quantization", replace(recipe, base=replace(recipe.base, quantization="nf4"))
    if recipe.training.optimizer in ("adamw", "adamw_fused", "paged_adamw"):
        yield "training.optimizer", replace(recipe, training=replace(recipe.training, optimizer="adamw_8bit"))
    auto = replace(recipe.training, checkpointing="auto", offload_checkpoints="auto")
    if auto != recipe.training:
        yield "training.checkpointing", replace(recipe, training=auto)
    if (recipe.training.optimizer, recipe.training.adapter_dtype) == ("adamw_8bit", "float32"):
        yield "training.adapter_dtype", replace(recipe, training=replace(recipe.training, adapter_dtype="bfloat16"))
    if recipe.distributed.cards > 1 and recipe.distributed.strategy in ("ddp", "zero2"):
        yield "distributed.strategy", replace(recipe, distributed=replace(recipe.distributed, strategy="fsdp2"))
    for sequence in range(recipe.distributed.sequence + 1, recipe.distributed.cards + 1):
        if recipe.distributed.cards % sequence == 0 and model.heads % sequence == 0 and not model.experts:
            yield "distributed.sequence", replace(recipe, distributed=replace(recipe.distributed, sequence=sequence))
    length = recipe.data.max_length
    while (length := length // 2) >= LEAST_LENGTH:
        yield "data.max_length", replace(recipe, data=replace(recipe.data, max_length=length))
    rank = recipe.lora.rank
    while (rank := rank // 2) >= LEAST_RANK:
        yield "lora.rank", replace(recipe, lora=replace(recipe.lora, rank=rank))
