"""The end of a fit: measures base, published adapter and result on samples that did not choose the result."""

from __future__ import annotations

from trainer.check import Checked
from trainer.errors import Diverged
from trainer.evaluate.judged import MODELS, Judged, judge_samples
from trainer.fit.context import FitContext
from trainer.fit.progress import Progress
from trainer.fit.suspects import find_suspects
from trainer.outcomes import Inputs


def judge(context: FitContext, inputs: Inputs, checked: Checked, progress: Progress) -> Judged:
    """Measure the base, the published adapter and the result on samples that did not choose the result.

    Raises:
        Diverged: a loss is not finite.
    """
    step = progress.result_step(load_best=context.recipe.training.load_best)
    judged = judge_samples(
        context.held_out.on(inputs.parts.judging),
        context.adapted,
        current=checked.current,
        start=checked.parent,
        trained=step > 0,
    )
    if name := judged.not_finite():
        context.events.emit("non_finite", step=step, what=f"{name}_loss")
        suspects = find_suspects(
            context.accelerator, context.model, context.optimizer, inputs.parts.judging,
            outside=inputs.training_samples, reason="non_finite", step=step,
        )  # fmt: skip
        raise Diverged(f"the {name}'s held-out loss is {judged.score(name).loss}", suspects)
    for name in MODELS:
        score = judged.score(name)
        context.events.emit(
            "evaluation", step=step, which=name, part="judging", **score.as_report(), tokens=score.tokens
        )
    return judged
