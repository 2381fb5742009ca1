"""Measures an adapter, the current one and the base on held-out rows, after training. Writes evaluation.jsonl."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from trainer.data.encoder import SampleEncoder, TokenSample
from trainer.data.tokenize import TokenRows, tokenize_rows
from trainer.errors import Diverged, UnusableInput
from trainer.evaluate.held_out import HeldOut
from trainer.evaluate.judged import Judged
from trainer.evaluate.transformers_engine import load_model
from trainer.model.attention import choose_kernel
from trainer.model.load import compute_dtype
from trainer.model.lora import add_adapter, load_adapter
from trainer.model.step import LossModel
from trainer.recipe import Recipe
from trainer.records import Row
from trainer.samples.build import needs
from trainer.stop import StopRequest

CURRENT = "current"


def held_out_samples(rows: Sequence[Row], tokenizer: Any, recipe: Recipe, *, seed: int) -> TokenRows:
    """Make the samples of held-out rows as a run does.

    Raises:
        UnusableInput: no row gives a sample.
    """
    encoder = SampleEncoder(tokenizer)
    encoder.check(needs(recipe.data))
    made = tokenize_rows(rows, encoder, replace(recipe.data, rename_fraction=0.0), seed=seed)
    if not made.samples:
        raise UnusableInput(f"none of {len(rows)} held-out rows gives a sample. Wait for a run that holds files out")
    return made


def measure(
    recipe: Recipe,
    samples: Sequence[TokenSample],
    *,
    adapter: Path | None,
    current: Path | None,
    stop: StopRequest,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Judged:
    """Measure the adapter (`candidate`), the current one (`current`) and the base (`anchor`).

    Args:
        adapter: None for the base
        current: None if there is no current adapter: then it is the base, too

    Raises:
        Diverged: a loss is not finite.
    """
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    device = accelerator.device
    if adapter is None:  # HeldOut needs an adapter to disable; a new one changes nothing
        base = load_model(recipe, None, lambda _: None)
        adapted = add_adapter(base, replace(recipe.lora, rank=1), parent=None, seed=0)
    else:
        adapted = load_model(recipe, adapter, lambda _: None)
    kernel = choose_kernel(recipe.base, device, compute_dtype(recipe.base, device))
    held_out = HeldOut(
        accelerator,
        LossModel(adapted, kernel=kernel),
        samples,
        budget=recipe.evaluation.batch_size * recipe.data.max_length,
        stop=stop,
        on_progress=on_progress,
    )
    found = {"anchor": held_out.base_by_sample()}
    found["candidate"] = found["anchor"] if adapter is None else held_out.by_sample()
    if current is None:
        found[CURRENT] = found["anchor"]
    elif current == adapter:
        found[CURRENT] = found["candidate"]
    else:
        load_adapter(adapted, current, name=CURRENT)
        adapted.set_adapter(CURRENT)
        found[CURRENT] = held_out.by_sample()
    judged = Judged(samples=samples, by_model=found)
    if name := judged.not_finite():
        raise Diverged(f"the held-out loss of {name} is {judged.score(name).loss}")
    return judged


def totals(judged: Judged) -> Mapping[str, Any]:
    """Return loss, perplexity and token accuracy of each model over all samples."""
    return {name: judged.score(name).as_report() for name in judged.by_model}
