"""What a run tells its trackers besides its steps: what it is, and answers to a few held-out prompts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trainer.check import Checked
from trainer.evaluate.predictions import MAX_NEW_TOKENS, predict
from trainer.events import Events
from trainer.fit.checkpoint import Checkpoint
from trainer.fit.context import FitContext
from trainer.outcomes import Inputs
from trainer.recipe import Recipe
from trainer.run_dir import RunDirectory
from trainer.track.trackers import Trackers, open_trackers
from trainer.track.wandb_run import run_name


@contextmanager
def tracked(
    directory: RunDirectory,
    checked: Checked,
    recipe: Recipe,
    events: Events,
    resume_from: Checkpoint | None,
    facts: dict[str, Any],
) -> Iterator[Trackers]:
    """Open the recipe's trackers in the first process, and close them at the end of the block.

    Args:
        recipe: with all memory settings resolved
        facts: what the event `plan` says
    """
    trackers = Trackers([])
    if is_first_process():
        trackers = open_trackers(
            recipe,
            directory,
            run_name=run_name(recipe, checked.run_id),
            on_problem=lambda tracker, message: events.emit("tracker", tracker=tracker, message=message),
            facts={
                "run_id": checked.run_id,
                "phase": checked.phase,
                "seed": checked.seed,
                "parent_version": checked.parent_version,
                **facts,
            },
            purge_step=None if resume_from is None else resume_from.progress.step + 1,
        )
    try:
        yield trackers
    finally:
        trackers.close()


def write_predictions(context: FitContext, inputs: Inputs, tokenizer: Any, *, weights: int, now: int) -> None:
    """Answer a few held-out prompts. Sends the texts to the trackers, and the count to the events.

    Args:
        weights: the step whose weights the model has
        now: the step that the curves have reached. W&B takes nothing for an earlier one
    """
    chosen = inputs.parts.samples[: context.recipe.tracking.sample_predictions]
    answers = predict(
        context.adapted, tokenizer, chosen, step=weights, pad=context.pad, stop=context.stop,
        budget=prediction_tokens(context.recipe),
    )  # fmt: skip
    for prediction, tokens in answers:
        context.events.emit("prediction", step=weights, file_id=prediction.file_id, tokens=tokens)
    if answers:
        context.trackers.predictions(now, [prediction for prediction, _ in answers])


def prediction_tokens(recipe: Recipe) -> int:
    """Return how many tokens a batch of predictions may have, so that it needs no more memory than the training.

    The training keeps at least a hidden state per layer and token of its batch. Keys and values of a token are at most
    twice as large. One long sample fits in any case.
    """
    kept = (
        0
        if recipe.training.offload_checkpoints == "always"
        else recipe.training.batch_size * recipe.data.max_length // 2
    )
    return max(kept, recipe.data.max_length + MAX_NEW_TOKENS)


def is_first_process() -> bool:
    """Whether this process writes for all of them."""
    return os.environ.get("RANK", "0") == "0"
