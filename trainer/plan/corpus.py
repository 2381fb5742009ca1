"""Computes from a corpus' size how many steps and hours a recipe takes."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from trainer.errors import UnusableInput
from trainer.plan.cards import Card
from trainer.plan.choose import Plan, element_bytes
from trainer.plan.model import Model
from trainer.plan.speed import tokens_per_second
from trainer.plan.static import sizes_of
from trainer.recipe import Recipe, step_samples


@dataclass(frozen=True, kw_only=True)
class CorpusCost:
    """One training on a corpus, without replay."""

    samples: int
    """Of each phase, if there are phases."""
    phases: int
    """Number of phases. 0: the recipe has none."""
    trained_samples: int
    """Without those held out."""
    steps_per_epoch: int
    steps: int
    tokens: int | None
    """Trained, over all epochs. None if the corpus' tokens are unknown."""
    hours: float | None
    """With the exchange between cards, without evaluations."""

    def text(self, processes: int) -> str:
        """Return one line for people."""
        phases = f" in each of {self.phases} phases" if self.phases else ""
        line = (
            f"{self.steps:,} steps ({self.steps_per_epoch:,} per epoch) for {self.trained_samples:,} of "
            f"{self.samples:,} samples{phases}; the others are held out"
        )
        if self.tokens is None or self.hours is None:
            return f"{line}. With corpus.tokens the plan also says how long they take"
        cards = "one card" if processes == 1 else f"{processes} cards"
        return f"{line}. {self.tokens / 1e6:,.1f} M tokens take {_time(self.hours)} on {cards}"

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"hours": None if self.hours is None else round(self.hours, 3)}


def with_corpus(recipe: Recipe, samples: int | None, tokens_per_sample: float | None) -> Recipe:
    """Replace the recipe's corpus by flags.

    Raises:
        UnusableInput: a flag is below 1, or the number of samples is unknown.
    """
    corpus = recipe.corpus
    for flag, value in (("--samples", samples), ("--tokens-per-sample", tokens_per_sample)):
        if value is not None and not 1 <= value < math.inf:
            raise UnusableInput(f"{flag}: {value} must be at least 1")
    if samples is not None:
        corpus = replace(corpus, samples=samples, tokens=None)
    if tokens_per_sample is not None:
        if corpus.samples is None:
            raise UnusableInput("--tokens-per-sample needs --samples, or corpus.samples in the recipe")
        corpus = replace(corpus, tokens=round(corpus.samples * tokens_per_sample))
    return replace(recipe, corpus=corpus)


def corpus_cost(model: Model, recipe: Recipe, plan: Plan, card: Card) -> CorpusCost | None:
    """Compute the cost. None if the number of samples is unknown."""
    corpus, training = recipe.corpus, recipe.training
    if corpus.samples is None:
        return None
    trained = corpus.samples - round(corpus.samples * recipe.data.held_out_fraction)
    per_epoch = -(-trained // step_samples(recipe))
    epochs = [phase.num_epochs for phase in recipe.phases] or [training.num_epochs]
    num_epochs, of_epochs = sum(epochs), per_epoch * sum(epochs)
    steps = sum(min(per_epoch * of_phase, training.max_steps or per_epoch * of_phase) for of_phase in epochs)
    tokens = hours = None
    if corpus.tokens is not None:
        each = corpus.tokens / corpus.samples
        tokens = round(each * trained * num_epochs * steps / max(1, of_epochs))
        speed = _speed(model, recipe, plan, card, each) * recipe.distributed.cards
        hours = tokens / speed / 3600
    return CorpusCost(
        samples=corpus.samples, phases=len(recipe.phases), trained_samples=trained, steps_per_epoch=per_epoch,
        steps=steps, tokens=tokens, hours=hours,
    )  # fmt: skip


def _time(hours: float) -> str:
    return f"{hours:,.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"


def _speed(model: Model, recipe: Recipe, plan: Plan, card: Card, each: float) -> float:
    """Tokens per second of one card on samples of `each` tokens. Without packing, passes are shorter."""
    length = max(1, min(recipe.data.max_length, round(each)))
    choice = plan.choice
    if not recipe.training.packing:
        samples = choice.micro_batch_tokens // recipe.data.max_length
        choice = replace(choice, micro_batch_tokens=samples * length)
    short = replace(recipe, data=replace(recipe.data, max_length=length))
    sizes = sizes_of(recipe, element=element_bytes(recipe))
    return tokens_per_second(model, short, choice, sizes, card, passes=plan.accumulation, exchange=plan.exchange)
