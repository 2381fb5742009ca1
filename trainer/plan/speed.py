"""Estimates tokens per second on a card from the work of a step.

seconds of a micro-batch = the largest of   FLOPs / (card's dense rate × EFFICIENCY) + unpacking / bandwidth
                                            bytes to the host and back / HOST_BANDWIDTH
                                            gathers of weights from other cards
                           + sums of gradients after it, and all-to-alls between cards that share it
seconds of a step        = its micro-batches + its own exchange (trainer/plan/exchange.py)
"""

from __future__ import annotations

from trainer.plan.cards import Card
from trainer.plan.exchange import Exchange
from trainer.plan.memory import Choice, host_bytes
from trainer.plan.model import Model
from trainer.plan.static import Sizes
from trainer.recipe import Recipe

EFFICIENCY = 0.60
"""Share of the card's dense rate that a step's products reach. This is the trainer's goal, not a measurement. The
best published figure for a consumer card is 0.68."""
HOST_BANDWIDTH = 20e9
"""Bytes per second between host and card, each way: PCIe 4.0 ×16, page-locked, as commonly measured (32e9 nominal)."""
MLP = ("gate_proj", "up_proj", "gate_up_proj", "down_proj")
UNPACKED_BYTES = 4.5
"""Bytes moved per weight that is unpacked for one use: 0.5 read, 2 written, 2 read by the product."""


def tokens_per_second(
    model: Model, recipe: Recipe, choice: Choice, sizes: Sizes, card: Card, *, passes: int, exchange: Exchange
) -> float:
    """Tokens per second of training on one card, without evaluations.

    Args:
        passes: micro-batches in a step
    """
    own = choice.of_card(sizes)
    tokens = own.micro_batch_tokens
    seconds = tokens * flops_per_token(model, recipe, choice) / (card.tflops * 1e12 * EFFICIENCY)
    if recipe.base.quantization == "nf4":
        seconds += _weight_uses(model, choice) * UNPACKED_BYTES / (card.bandwidth_gbs * 1e9)
    moved = 2 * host_bytes(model, own, sizes) / HOST_BANDWIDTH
    each = max(seconds, moved, exchange.hidden) + exchange.open
    return passes * tokens / (passes * each + exchange.of_step)


def flops_per_token(model: Model, recipe: Recipe, choice: Choice) -> float:
    """FLOPs of forward, backward and recomputation. Causal attention covers half of the longest sample.

    A frozen matrix costs two products (forward, gradient of its input), an adapter three. Attention's backward pass
    costs 2.5 times its forward pass, because it recomputes the scores (Dao 2023, section 3.2).
    """
    matrices = 2 * sum(matrix.active for matrix in model.matrices)
    adapters = 2 * recipe.lora.rank * sum(m.inputs + m.outputs for m in model.matrices if m.adapted)
    attention = 2 * recipe.data.max_length * model.layers * model.heads * model.head_width
    head = 2 * model.vocabulary * model.hidden * supervised_fraction(recipe)
    once = 2 * matrices + 3 * adapters + 3.5 * attention + 2 * head
    match choice.checkpointing:
        case "none":
            return once
        case "selective":
            return once + _mlp_flops(model, recipe)
        case _:
            return once + matrices + adapters + attention


def supervised_fraction(recipe: Recipe) -> float:
    """Share of a sample's tokens with loss: all tokens outside the prompt."""
    return 1 - (recipe.data.context_fraction_low + recipe.data.context_fraction_high) / 2


def _mlp_flops(model: Model, recipe: Recipe) -> int:
    chosen = [m for m in model.matrices if m.name in MLP]
    return 2 * sum(m.active + recipe.lora.rank * (m.inputs + m.outputs) * m.adapted for m in chosen)


def _weight_uses(model: Model, choice: Choice) -> int:
    """Weights unpacked in one micro-batch."""
    numel = sum(matrix.numel for matrix in model.matrices)
    mlp = sum(m.numel for m in model.matrices if m.name in MLP)
    return 2 * numel + {"none": 0, "selective": mlp, "full": numel}[choice.checkpointing]
