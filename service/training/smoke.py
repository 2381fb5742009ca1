"""`codelupe train --smoke`: the whole path of a recipe in a minute or two, with a toy model of the base's architecture.

The toy has random weights, so its losses say nothing about the recipe. It shows that data, recipe and architecture fit.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from service.cycle.trainer_commands import make_toy
from service.errors import UsageError
from service.settings.load import Settings
from trainer.recipe import TINY_BASE, Corpus, Distributed, Lora, Recipe

ROWS = 40
"""Rows of a phase."""
MOST_TOKENS, MOST_STEPS, MOST_RANK = 256, 6, 8
MOST_TOKENS_UNCUT = 512
"""For samples that are not cut into windows. In 256 tokens, the question around them leaves most files no room."""
UNCUT = frozenset({"instruction", "fim"})
LEARNING_RATE = 5e-3
"""A random model learns nothing visible in a few steps at a usual rate."""
TOY = "toy"


def smoke_settings(settings: Settings, folder: Path) -> Settings:
    """Return the settings with a toy base and small numbers. The toy is made in the folder, if it is not there.

    Raises:
        UsageError: there is no toy of the base's architecture.
    """
    model = settings.recipe.base.model
    if model != TINY_BASE:
        toy = folder / TOY
        if not toy.exists() and make_toy(model, toy, settings.trainer_secrets) != 0:
            raise UsageError(f"--smoke: no toy could be made for {model}. See the message above")
        model = str(toy)
    return replace(settings, recipe=smaller(settings.recipe, model))


def smaller(recipe: Recipe, model: str) -> Recipe:
    """Return the recipe with another base, and with numbers that suit a laptop. Kinds and names stay as they are."""
    data, training = recipe.data, recipe.training
    tokens = min(data.max_length, MOST_TOKENS_UNCUT if UNCUT & {*dict(data.builders)} else MOST_TOKENS)
    window = None if data.window_tokens is None else min(data.window_tokens, tokens)
    return replace(
        recipe,
        base=replace(recipe.base, model=model, revision=None),
        lora=_smaller_lora(recipe.lora),
        data=replace(
            data, max_length=tokens, window_tokens=window, window_overlap=min(data.window_overlap, tokens // 8),
            max_eval_tokens=min(data.max_eval_tokens, 2000), max_stopping_tokens=min(data.max_stopping_tokens, 1000),
        ),
        training=replace(
            training, batch_size=2, gradient_accumulation_steps=2, max_steps=MOST_STEPS, learning_rate=LEARNING_RATE,
            dataloader_workers=0, pin_memory=False, checkpoint_steps=training.checkpoint_steps and 2,
        ),
        evaluation=replace(recipe.evaluation, interval_fraction=0.5, interval_steps=None, batch_size=2, suites=()),
        gate=replace(recipe.gate, evidence="point", least_gain=0.0, least_files=2, more_loops=1.0, largest_norm=100.0),
        tracking=replace(recipe.tracking, sample_predictions=min(recipe.tracking.sample_predictions, 1)),
        distributed=Distributed(),
        corpus=Corpus(),
        phases=tuple(replace(phase, learning_rate=None) for phase in recipe.phases),
    )  # fmt: skip


def _smaller_lora(lora: Lora) -> Lora:
    """Return the adapter's shape with a small rank and the same scale."""
    rank = min(lora.rank, MOST_RANK)
    return replace(lora, rank=rank, alpha=max(1, round(lora.alpha * rank / lora.rank)))
