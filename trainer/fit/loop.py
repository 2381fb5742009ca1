"""The training loop: steps, evaluations, checkpoints, early stopping, and stopping on request.

step 0 ─ evaluate ─▶ step ─▶ … ─▶ step ─ evaluate, checkpoint ─▶ step ─▶ … ─▶ last step, or early stop
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, reduce
from peft import set_peft_model_state_dict

from trainer.data.batches import Windows, load_batches, pack_samples
from trainer.data.encoder import TokenSample
from trainer.errors import Diverged, OutOfMemory, Stopped
from trainer.evaluate.held_out import HeldOut
from trainer.evaluate.score import Score
from trainer.events import Events
from trainer.fit.checkpoint import Checkpoint, load_adapter, save_checkpoint
from trainer.fit.optimizer import set_learning_rate
from trainer.fit.progress import Progress, evaluation_due
from trainer.fit.schedule import learning_rate
from trainer.fit.suspects import find_suspects
from trainer.model.batch import Batch
from trainer.model.lora import adapter_weights
from trainer.model.memory import is_out_of_memory, peak_gpu_bytes
from trainer.recipe import Recipe
from trainer.records import Failure, Suspects
from trainer.stop import StopRequest
from trainer.track.trackers import Trackers


@dataclass(frozen=True, kw_only=True)
class FitContext:
    """Objects that a fit uses."""

    recipe: Recipe
    accelerator: Accelerator
    model: Any
    """A LossModel, wrapped by accelerate."""
    optimizer: Any
    windows: Windows
    held_out: HeldOut
    pad: int
    checkpoints: Path
    events: Events
    trackers: Trackers
    stop: StopRequest

    @property
    def adapted(self) -> Any:
        """The PEFT model inside."""
        return self.accelerator.unwrap_model(self.model).model


class Fit:
    """One run's training, from a checkpoint or from the start."""

    def __init__(self, context: FitContext, resume_from: Checkpoint | None) -> None:
        self.context = context
        self.steps_total = len(context.windows)
        self.progress = Progress()
        if resume_from is not None:
            self._restore(resume_from)
        self.batches: Iterator[Batch] = iter(())
        self.micro_per_step: list[int] = []
        self.budget = pack_budget(context.recipe)
        """Tokens per forward pass. Halved when memory runs out."""

    def run(self) -> Progress:
        """Train to the end, and load the best weights into the model.

        Raises:
            Stopped, Diverged, OutOfMemory
        """
        with self.context.stop.deferred():
            self._plan_batches()
            self.context.model.train()
            while True:
                self._evaluate_if_due()
                if self.progress.step == self.steps_total or self.progress.stopped_early:
                    break
                self._stop_if_asked()
                self._step()
            self._load_best_weights()
        return self.progress

    # --- steps ------------------------------------------------------------------------------------------------

    def _plan_batches(self) -> None:
        """Plan this rank's packs of all remaining steps as one stream, which loader workers prepare ahead."""
        training, accelerator = self.context.recipe.training, self.context.accelerator
        windows = self.context.windows
        planned = [
            pack_samples(
                windows[step].members,
                windows.samples,
                budget=self.budget,
                rank=accelerator.process_index,
                world=accelerator.num_processes,
            )
            for step in range(self.progress.step, self.steps_total)
        ]
        self.micro_per_step = [0] * self.progress.step + [len(batches) for batches in planned]
        self.batches = load_batches(
            windows.samples,
            [batch for batches in planned for batch in batches],
            workers=training.dataloader_workers,
            pin_memory=training.pin_memory and accelerator.device.type == "cuda",
        )

    def _step(self) -> None:
        """Run one optimizer step over one window."""
        start = time.monotonic()
        context, progress = self.context, self.progress
        window = context.windows[progress.step]
        step = progress.step + 1
        batches = [next(self.batches) for _ in range(self.micro_per_step[progress.step])]
        loss = self._gradients(batches, window.supervised, step)
        limit = context.recipe.training.max_grad_norm or math.inf
        norm = float(context.accelerator.clip_grad_norm_(context.model.parameters(), limit))
        self._check_finite(step, self._members(), context.held_out.samples, loss=loss, grad_norm=norm)
        rate = learning_rate(step, self.steps_total, context.recipe.training)
        set_learning_rate(context.optimizer, rate)
        context.optimizer.step()
        context.optimizer.zero_grad()
        progress.step = step
        progress.tokens_seen += window.tokens
        progress.losses.append(loss)
        speed = window.tokens / max(time.monotonic() - start, 1e-9)
        self._report_step(epoch=window.epoch, tokens=window.tokens, rate=rate, norm=norm, speed=speed)

    def _gradients(self, batches: Sequence[Batch], supervised: int, step: int) -> float:
        """Compute the gradients of the window's mean loss. Returns that loss.

        When memory runs out, repeat the window with half as many tokens per forward pass. The gradient is the same.
        """
        pieces = [piece for batch in batches for piece in batch.split(self.budget)]
        while True:
            try:
                return self._accumulate(pieces, supervised)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            # The error and the memory held by its frames are free now.
            most = max(piece.tokens for piece in pieces)
            self.context.optimizer.zero_grad()
            torch.cuda.empty_cache()
            if self.context.accelerator.num_processes > 1 or all(len(piece.lengths) == 1 for piece in pieces):
                suspects = self._suspects("out_of_memory", step, self._members(), self.context.held_out.samples)
                raise OutOfMemory(f"step {step}: out of memory with {most} tokens per forward pass", suspects)
            self.budget = most // 2
            pieces = [piece for batch in batches for piece in batch.split(self.budget)]
            self.context.events.emit("out_of_memory", step=step, tokens=self.budget)

    def _accumulate(self, pieces: Sequence[Batch], supervised: int) -> float:
        """Run all packs forward and backward. Each is weighted by its share of the window's tokens on all ranks."""
        accelerator, model = self.context.accelerator, self.context.model
        total = torch.zeros((), dtype=torch.float64, device=accelerator.device)
        for index, piece in enumerate(pieces):
            batch = piece.to(accelerator.device)
            sync = accelerator.no_sync(model) if index < len(pieces) - 1 else nullcontext()
            with sync:
                loss, _ = model(batch)
                # DDP averages over ranks, but the window's mean needs their sum
                accelerator.backward(loss * (accelerator.num_processes / supervised))
            total += loss.detach().double()
        return float(reduce(total, "sum")) / supervised

    def _check_finite(
        self, step: int, samples: Sequence[TokenSample], outside: Sequence[TokenSample], **values: float
    ) -> None:
        """Raises Diverged if a value from `samples` is not finite. `outside` are samples of other steps."""
        for what, value in values.items():
            if not math.isfinite(value):
                self.context.events.emit("non_finite", step=step, what=what)
                self.context.optimizer.zero_grad()
                raise Diverged(f"step {step}: {what} is {value}", self._suspects("non_finite", step, samples, outside))

    def _members(self) -> list[TokenSample]:
        """Return the samples of the current window on all ranks."""
        windows = self.context.windows
        return [windows.samples[index] for index in windows[self.progress.step].members]

    def _suspects(
        self, reason: Failure, step: int, samples: Sequence[TokenSample], outside: Sequence[TokenSample]
    ) -> Suspects | None:
        context = self.context
        return find_suspects(
            context.accelerator, context.model, context.optimizer, samples, outside=outside, reason=reason, step=step
        )

    def _report_step(self, *, epoch: int, tokens: int, rate: float, norm: float, speed: float) -> None:
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
        )
        self.context.trackers.log(
            progress.step,
            {
                "train/loss": progress.losses[-1],
                "train/learning_rate": rate,
                "train/grad_norm": norm,
                "train/tokens_per_second": speed,
                "memory/gpu_bytes": float(memory),
            },
        )

    # --- evaluation -------------------------------------------------------------------------------------------

    def _evaluate_if_due(self) -> None:
        """Evaluate if it is due and not done before a resume. Then save a checkpoint."""
        limits = self.context.recipe.evaluation
        if self.progress.measured or not evaluation_due(self.progress.step, self.steps_total, limits.interval_fraction):
            return
        try:
            if self.progress.step == 0:
                self._evaluate_start()
            else:
                self._evaluate_candidate()
        except Stopped:
            self._stop_if_asked()
            raise

    def _evaluate_start(self) -> None:
        """Measure anchor and current before the first step. The candidate starts as current."""
        progress, held_out = self.progress, self.context.held_out
        anchor = held_out.measure_base()
        current = held_out.measure()
        self._check_measured(anchor_loss=anchor.loss, current_loss=current.loss)
        progress.anchor, progress.current = anchor, current
        self._report_evaluation("anchor", anchor)
        self._report_evaluation("current", current)
        progress.record(current, self.context.recipe.evaluation)
        self._report_evaluation("candidate", current, best=progress.latest_is_best)

    def _evaluate_candidate(self) -> None:
        progress = self.progress
        score = self.context.held_out.measure()
        self._check_measured(eval_loss=score.loss)
        progress.record(score, self.context.recipe.evaluation)
        self._report_evaluation("candidate", score, best=progress.latest_is_best)
        self._save()
        if progress.stopped_early:
            self.context.events.emit("early_stop", step=progress.step, best_step=progress.best_step)

    def _check_measured(self, **losses: float) -> None:
        self._check_finite(self.progress.step, self.context.held_out.samples, self.context.windows.samples, **losses)

    def _report_evaluation(self, which: str, score: Score, **more: bool) -> None:
        self.context.events.emit(
            "evaluation",
            step=self.progress.step,
            which=which,
            **score.as_report(),
            tokens=score.tokens,
            **more,
        )
        if which == "candidate":
            self.context.trackers.log(
                self.progress.step,
                {
                    "eval/loss": score.loss,
                    "eval/perplexity": score.perplexity,
                    "eval/token_accuracy": score.token_accuracy,
                },
            )

    # --- checkpoints ------------------------------------------------------------------------------------------

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
        context = self.context
        states = gather_object([_random_state(context.accelerator)])
        if context.accelerator.is_main_process:
            checkpoint = Checkpoint(
                progress=self.progress,
                adapter=adapter_weights(context.adapted),
                optimizer=_inner(context.optimizer).state_dict(),
                random={name: state for rank in states for name, state in rank.items()},
            )
            path = save_checkpoint(context.checkpoints, checkpoint)
            context.events.emit("checkpoint", step=self.progress.step, path=f"{path.parent.name}/{path.name}")
        context.accelerator.wait_for_everyone()

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.progress = checkpoint.progress
        set_peft_model_state_dict(self.context.adapted, checkpoint.adapter)
        _inner(self.context.optimizer).load_state_dict(checkpoint.optimizer)
        rank = self.context.accelerator.process_index
        torch.set_rng_state(checkpoint.random[f"cpu.{rank}"])
        if self.context.accelerator.device.type == "cuda":
            torch.cuda.set_rng_state(checkpoint.random[f"cuda.{rank}"])

    def _load_best_weights(self) -> None:
        """Load the weights of the best step into the model."""
        if (best := self.progress.best_step) != self.progress.step:
            set_peft_model_state_dict(self.context.adapted, load_adapter(self.context.checkpoints, best))


def pack_budget(recipe: Recipe) -> int:
    """Return the tokens of one forward pass: as many as a padded batch of the recipe's size."""
    return recipe.training.batch_size * recipe.data.max_length


def _inner(optimizer: Any) -> Any:
    """Return the optimizer inside accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)


def _random_state(accelerator: Accelerator) -> dict[str, torch.Tensor]:
    rank = accelerator.process_index
    state = {f"cpu.{rank}": torch.get_rng_state()}
    if accelerator.device.type == "cuda":
        state[f"cuda.{rank}"] = torch.cuda.get_rng_state()
    return state
