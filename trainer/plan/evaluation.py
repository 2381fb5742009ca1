"""Estimates what share of a run's time goes into evaluation: stopping, judging, and the examination."""

from __future__ import annotations

import math
from dataclasses import dataclass

from trainer.plan.cards import Card
from trainer.plan.choose import Plan, element_bytes
from trainer.plan.model import Model
from trainer.plan.speed import EFFICIENCY, UNPACKED_BYTES, supervised_fraction
from trainer.plan.static import sizes_of, weight_bytes
from trainer.recipe import Recipe, step_samples

RUN_FILES, FILE_TOKENS = 1000, 800
"""A run of MIN_NEW_FILES files, of the usual length."""
JUDGED_MODELS = 3
ANSWER_TOKENS, ANSWERING_MODELS = 64, 2
"""The examination lets two models answer a batch of prompts."""
READ_BANDWIDTH = 1e9
"""Bytes per second at which a fresh process reads the 4-bit copy of the base: a common NVMe disk."""


@dataclass(frozen=True, kw_only=True)
class EvaluationCost:
    """The cost of evaluation in a run of RUN_FILES files."""

    stopping_tokens: int
    """Tokens measured while it trains, over all evaluations."""
    judging_tokens: int
    """Tokens measured at the end, over all models."""
    measuring_seconds: float
    examination_seconds: float
    training_seconds: float

    @property
    def share(self) -> float:
        """Evaluation's share of the run."""
        spent = self.measuring_seconds + self.examination_seconds
        return spent / (spent + self.training_seconds)

    def text(self) -> str:
        """Return one line for people."""
        return (
            f"evaluation takes {self.share:.1%} of a run of {RUN_FILES:,} files of {FILE_TOKENS} tokens: "
            f"{self.stopping_tokens:,} tokens to stop by and {self.judging_tokens:,} to judge by "
            f"({self.measuring_seconds:.0f} s), {self.examination_seconds:.0f} s for the examination"
        )


def evaluation_cost(model: Model, recipe: Recipe, plan: Plan, card: Card) -> EvaluationCost:
    """Estimate the cost. The base and the start are measured once before the first step."""
    evaluations = 2 + _evaluations(recipe)
    stopping, judging = recipe.data.max_stopping_tokens * evaluations, recipe.data.max_eval_tokens * JUDGED_MODELS
    measuring = (stopping + judging) * _forward_flops(model, recipe) / (card.tflops * 1e12 * EFFICIENCY)
    sizes = sizes_of(recipe, element=element_bytes(recipe))
    weights = next(iter(weight_bytes(model, recipe.base, sizes).values()))
    weights += (model.embeddings + model.head) * sizes.element
    numel = sum(matrix.numel for matrix in model.matrices)
    each_token = UNPACKED_BYTES * numel / (card.bandwidth_gbs * 1e9)
    answering = ANSWERING_MODELS * ANSWER_TOKENS * each_token
    examination = weights / READ_BANDWIDTH + answering if recipe.gate.examination else 0.0
    return EvaluationCost(
        stopping_tokens=stopping,
        judging_tokens=judging,
        measuring_seconds=measuring,
        examination_seconds=examination,
        training_seconds=RUN_FILES * FILE_TOKENS / (plan.tokens_per_second * recipe.distributed.cards),
    )


def _evaluations(recipe: Recipe) -> int:
    """Number of evaluations after the first step, if a file is a sample."""
    limits, training = recipe.evaluation, recipe.training
    if limits.interval_steps is None:
        return math.ceil(1 / limits.interval_fraction)
    steps = -(-RUN_FILES // step_samples(recipe)) * training.num_epochs
    return math.ceil(min(steps, training.max_steps or steps) / limits.interval_steps)


def _forward_flops(model: Model, recipe: Recipe) -> float:
    """FLOPs of a forward pass per token."""
    matrices = 2 * sum(matrix.active for matrix in model.matrices)
    adapters = 2 * recipe.lora.rank * sum(m.inputs + m.outputs for m in model.matrices if m.adapted)
    attention = 2 * recipe.data.max_length * model.layers * model.heads * model.head_width
    head = 2 * model.vocabulary * model.hidden * supervised_fraction(recipe)
    return matrices + adapters + attention + head
