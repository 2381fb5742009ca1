"""The training loop: steps, evaluations, checkpoints, early stopping, and stopping on request.

step 0 ─ evaluate ─▶ step ─▶ … ─▶ step ─ evaluate, checkpoint ─▶ step ─▶ … ─▶ last step, or early stop

With training.checkpoint_steps, there are checkpoints between evaluations, too.
"""

from __future__ import annotations

import math
import time

import torch
from accelerate.utils import reduce

from trainer.errors import Stopped
from trainer.fit.checkpoint import Checkpoint
from trainer.fit.context import FitContext
from trainer.fit.evaluations import evaluate_candidate, evaluate_start
from trainer.fit.experts import ExpertLog
from trainer.fit.optimizer import set_learning_rate
from trainer.fit.passes import Passes
from trainer.fit.progress import Progress, evaluation_due
from trainer.fit.resuming import load_weights, restore_state, save_state
from trainer.fit.schedule import learning_rate
from trainer.model.memory import peak_gpu_bytes


class Fit:
    """One run's training, from a checkpoint or from the start."""

    def __init__(self, context: FitContext, resume_from: Checkpoint | None) -> None:
        self.context = context
        self.steps_total = len(context.windows)
        self.progress = Progress() if resume_from is None else restore_state(context, resume_from)
        self.passes = Passes(context)
        self.experts = ExpertLog(context)

    def run(self) -> Progress:
        """Train to the end, and load the weights that are the result into the model.

        Raises:
            Stopped, Diverged, OutOfMemory
        """
        with self.context.stop.deferred():
            self.passes.plan(self.progress.step)
            self.context.model.train()
            while True:
                self._evaluate_if_due()
                if self.progress.step == self.steps_total or self.progress.stopped_early:
                    break
                self._stop_if_asked()
                self._step()
                self._checkpoint_if_due()
            result = self.progress.result_step(load_best=self.context.recipe.training.load_best)
            if result != self.progress.step:
                load_weights(self.context, result)
        return self.progress

    def _step(self) -> None:
        """Run one optimizer step over one window."""
        start = time.monotonic()
        context, progress = self.context, self.progress
        window = context.windows[progress.step]
        step = progress.step + 1
        loss = self.passes.gradients(self.passes.next_batches(step), window.supervised, step)
        limit = context.recipe.training.max_grad_norm or math.inf
        norm = context.together.clip(limit)
        context.check_finite(step, context.members(step), context.held_out.samples, loss=loss, grad_norm=norm)
        rate = learning_rate(step, self.steps_total, context.recipe.training)
        set_learning_rate(context.optimizer, rate)
        context.optimizer.step()
        context.optimizer.zero_grad()
        progress.step = step
        progress.tokens_seen += window.tokens
        progress.losses.append(loss)
        more = self.experts.end_step(window.supervised, progress)
        speed = window.tokens / max(time.monotonic() - start, 1e-9)
        self._report_step(epoch=window.epoch, tokens=window.tokens, rate=rate, norm=norm, speed=speed, **more)

    def _report_step(self, *, epoch: int, tokens: int, rate: float, norm: float, speed: float, **more: float) -> None:
        progress = self.progress
        memory = peak_gpu_bytes(self.context.accelerator.device)
        self.context.events.emit(
            "step",
            step=progress.step,
            steps_total=self.steps_total,
            epoch=epoch,
            loss=progress.losses[-1],
            learning_rate=rate,
            grad_norm=norm,
            tokens=tokens,
            tokens_total=progress.tokens_seen,
            tokens_per_second=round(speed, 1),
            gpu_memory_bytes=memory,
            **more,
        )
        self.context.trackers.log(
            progress.step,
            {
                "train/loss": progress.losses[-1],
                "train/learning_rate": rate,
                "train/grad_norm": norm,
                "train/tokens_per_second": speed,
                "memory/gpu_bytes": float(memory),
                **self.context.readings.since_last(),
                **{f"train/{name}": value for name, value in more.items()},
            },
        )

    def _evaluate_if_due(self) -> None:
        """Evaluate if it is due and not done before a resume. Then save a checkpoint."""
        context, progress = self.context, self.progress
        if progress.measured or not evaluation_due(progress.step, self.steps_total, context.recipe.evaluation):
            return
        try:
            if progress.step == 0:
                evaluate_start(context, progress)
                return
            self.experts.report(progress)
            evaluate_candidate(context, progress)
        except Stopped:
            self._stop_if_asked()
            raise
        self._save()
        if progress.stopped_early:
            context.events.emit("early_stop", step=progress.step, best_step=progress.best_step)

    def _checkpoint_if_due(self) -> None:
        """Save a checkpoint between evaluations. An evaluation saves its own."""
        step, recipe = self.progress.step, self.context.recipe
        interval = recipe.training.checkpoint_steps
        if interval and step % interval == 0 and not evaluation_due(step, self.steps_total, recipe.evaluation):
            self._save()

    def _stop_if_asked(self) -> None:
        """Between two steps: save a checkpoint and stop, if any rank was asked to."""
        context = self.context
        asked = torch.tensor(float(context.stop.reason is not None), device=context.accelerator.device)
        if float(reduce(asked, "sum")) == 0:
            return
        if self.progress.step > 0:
            self._save()
        raise Stopped(context.stop.reason or "another rank was asked to stop")

    def _save(self) -> None:
        save_state(self.context, self.progress)
