"""Measures the held-out loss while a fit runs, and reports it."""

from __future__ import annotations

from trainer.evaluate.score import Score
from trainer.fit.context import FitContext
from trainer.fit.progress import Progress


def evaluate_start(context: FitContext, progress: Progress) -> None:
    """Measure anchor and current before the first step. The candidate starts as current.

    Raises:
        Diverged: a loss is not finite.
    """
    anchor = context.held_out.measure_base()
    current = context.held_out.measure()
    _check_measured(context, progress, anchor_loss=anchor.loss, current_loss=current.loss)
    progress.anchor, progress.current = anchor, current
    _report(context, progress, "anchor", anchor)
    _report(context, progress, "current", current)
    progress.record(current, context.recipe.evaluation)
    _report_candidate(context, progress, current)


def evaluate_candidate(context: FitContext, progress: Progress) -> None:
    """Measure the current weights.

    Raises:
        Diverged: the loss is not finite.
    """
    score = context.held_out.measure()
    _check_measured(context, progress, eval_loss=score.loss)
    progress.record(score, context.recipe.evaluation)
    _report_candidate(context, progress, score)


def _check_measured(context: FitContext, progress: Progress, **losses: float) -> None:
    context.check_finite(progress.step, context.held_out.samples, context.windows.samples, **losses)


def _report_candidate(context: FitContext, progress: Progress, score: Score) -> None:
    patience = {"misses": progress.misses, "patience": context.recipe.evaluation.patience}
    _report(context, progress, "candidate", score, best=progress.latest_is_best, **patience)


def _report(context: FitContext, progress: Progress, which: str, score: Score, **more: int) -> None:
    context.events.emit("evaluation", step=progress.step, which=which, **score.as_report(), tokens=score.tokens, **more)
    if which == "candidate":
        context.trackers.log(
            progress.step,
            {
                "eval/loss": score.loss,
                "eval/perplexity": score.perplexity,
                "eval/token_accuracy": score.token_accuracy,
            },
        )
