"""Trains one strategy over the stream, with the trainer's own fit, and measures every slice after every run."""

from __future__ import annotations

import copy
import random
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft import set_peft_model_state_dict
from samples import generated, samples_of_run, tokenized
from sources import Batch
from strategies import Strategy

from trainer.data.batches import Windows
from trainer.data.encoder import SampleEncoder, TokenSample, pad_id
from trainer.device_readings import DeviceReadings
from trainer.evaluate.held_out import HeldOut
from trainer.events import Events
from trainer.fit.checkpoint import load_checkpoint
from trainer.fit.context import FitContext
from trainer.fit.loop import Fit
from trainer.fit.optimizer import make_optimizer
from trainer.fit.progress import Progress
from trainer.fit.together import Together
from trainer.fit.trainable import make_trainable
from trainer.model.load import load_base, load_tokenizer
from trainer.model.lora import adapter_weights
from trainer.plan.device import fitted
from trainer.recipe import Recipe
from trainer.stop import StopRequest

STOPPING_TOKENS = 2000
HELD_OUT_SEED = 42
"""The prompts of held-out files do not depend on the stream's seed, so that all losses are of the same tokens."""
Weights = dict[str, torch.Tensor]


class NoTrackers:
    """Trackers that record nothing."""

    def log(self, step: int, values: dict[str, float]) -> None: ...

    def predictions(self, step: int, predictions: list[Any]) -> None: ...


class Learner:
    """One adapter that learns a stream with one strategy and one seed."""

    def __init__(
        self, strategy: Strategy, seed: int, recipe: Recipe, batches: Sequence[Batch], unseen: Batch, work: Path
    ) -> None:
        self.strategy, self.seed, self.work, self.batches = strategy, seed, work, batches
        device = torch.device("cpu")
        self.accelerator = Accelerator(cpu=True)
        self.recipe, _ = fitted(changed(recipe, strategy), device)
        self.tokenizer = load_tokenizer(self.recipe.base)
        self.model, _ = make_trainable(load_base(self.recipe.base, device), self.recipe, device, parent=None, seed=seed)
        self.adapted, self.stop = self.model.model, StopRequest()
        self.start: Weights = adapter_weights(self.adapted)
        self.trunk: tuple[Weights, dict[str, Any]] | None = None
        """Weights and optimizer before the last decay."""
        encoder = SampleEncoder(self.tokenizer)
        self.new = [tokenized(b.train, encoder, self.recipe, seed) for b in batches]
        self.stopping = [tokenized(b.stopping, encoder, self.recipe, HELD_OUT_SEED) for b in batches]
        self.slices = {
            b.name: HeldOut(
                self.accelerator, self.model, tokenized(b.judging, encoder, self.recipe, HELD_OUT_SEED),
                budget=self._budget, stop=self.stop,
            )
            for b in (*batches, unseen)
        }  # fmt: skip

    @property
    def _budget(self) -> int:
        return self.recipe.evaluation.batch_size * self.recipe.data.max_length

    def records(self) -> Iterator[dict[str, Any]]:
        """Learn the stream. Yields the measurements before the first run, and after each run."""
        names = [*self.slices]
        yield {"run": 0, "losses": self.losses(names)}
        for number in range(len(self.batches)):
            pools = self._pools(number)  # before the clock starts: generated texts are kept for all streams
            began = time.monotonic()
            draw = random.Random(f"{self.seed}:{number}")
            samples, replayed = samples_of_run(self.new[number], pools, self.strategy, draw)
            kept = self.learn(number, samples, draw)
            seconds = time.monotonic() - began
            yield {
                "run": number + 1,
                "losses": self.losses([*names[: number + 2], names[-1]]),  # those learned, the next one, the unseen one
                "tokens": sum(sample.tokens for sample in samples),
                "replayed": replayed,
                "kept_start": kept,
                "seconds": round(seconds, 3),
            }

    def losses(self, names: Sequence[str]) -> dict[str, float]:
        """Measure the loss on the judging files of slices."""
        return {name: round(self.slices[name].measure().loss, 6) for name in dict.fromkeys(names)}

    def learn(self, number: int, samples: Sequence[TokenSample], draw: random.Random) -> bool:
        """Do one run. Returns whether its start was better than all its steps, and was kept."""
        if self.strategy.fresh:
            self._set(self.start)
        if self.strategy.carried:
            self._learn_on_trunk(number, samples, draw)
            return False
        before = adapter_weights(self.adapted)
        with tempfile.TemporaryDirectory(dir=self.work) as folder:
            progress = self._fit(number, samples, self.recipe, self._optimizer(), Path(folder))
            if self.strategy.averaged > 1:
                self._set(mean([load_checkpoint(path).adapter for path in self._last(Path(folder))]))
        best = min(score.loss for _, score in progress.history)
        if self.strategy.from_step_0 and progress.history[0][1].loss <= best:
            self._set(before)
            return True
        return False

    def _learn_on_trunk(self, number: int, samples: Sequence[TokenSample], draw: random.Random) -> None:
        """Go on from the trunk at a constant rate. Then decay the rate on a branch, if the strategy has one."""
        optimizer = self._optimizer()
        if self.trunk is not None:
            self._set(self.trunk[0])
            optimizer.load_state_dict(copy.deepcopy(self.trunk[1]))
        mixed = draw.sample(list(samples), len(samples))
        last = round(len(mixed) * self.strategy.decay)
        with tempfile.TemporaryDirectory(dir=self.work) as folder:
            warm = self.recipe.training.warmup_fraction if self.trunk is None else 0.0
            constant = with_schedule(self.recipe, "constant", warm)
            self._fit(number, mixed[: len(mixed) - last], constant, optimizer, Path(folder) / "trunk")
            self.trunk = adapter_weights(self.adapted), copy.deepcopy(optimizer.state_dict())
            if last:
                decay = with_schedule(self.recipe, "linear", 0.0)
                self._fit(number, mixed[-last:], decay, optimizer, Path(folder) / "branch")

    def _fit(
        self, number: int, samples: Sequence[TokenSample], recipe: Recipe, optimizer: Any, folder: Path
    ) -> Progress:
        folder.mkdir(exist_ok=True)
        training = recipe.training
        size = training.batch_size * training.gradient_accumulation_steps
        torch.manual_seed(self.seed * 1000 + number)
        events = Events(folder / "events.jsonl", enabled=False)
        context = FitContext(
            together=Together(self.model, self.accelerator),
            recipe=recipe,
            accelerator=self.accelerator,
            model=self.model,
            optimizer=optimizer,
            windows=Windows(samples, size=size, num_epochs=1, seed=self.seed * 1000 + number),
            held_out=self.slices[self.batches[0].name].on(self._stopping(number)),
            pad=pad_id(self.tokenizer),
            checkpoints=folder / "checkpoints",
            events=events,
            trackers=NoTrackers(),  # type: ignore[arg-type]
            readings=DeviceReadings(events),
            stop=self.stop,
        )
        if self.strategy.averaged > 1:
            return _KeepingFit(context, None).run()
        return Fit(context, None).run()

    def _stopping(self, number: int) -> list[TokenSample]:
        """Return the samples that choose the best step: this run's, then earlier ones in seeded order, as in a run."""
        chosen = list(self.stopping[number])
        left = STOPPING_TOKENS - sum(sample.tokens for sample in chosen)
        earlier = [sample for samples in self.stopping[:number] for sample in samples]
        random.Random(self.seed).shuffle(earlier)
        for sample in earlier:
            if sample.tokens <= left:
                chosen.append(sample)
                left -= sample.tokens
        return chosen

    def _pools(self, number: int) -> list[list[TokenSample]]:
        if self.strategy.replay and self.strategy.source == "base":
            path = self.work / "generated" / f"{number}.json"
            return [generated(path, self.adapted, self.tokenizer, self.new[number])]
        return self.new[:number]

    def _optimizer(self) -> Any:
        return make_optimizer(self.adapted.parameters(), self.recipe.training, draws=(self.seed, 0))

    def _set(self, weights: Weights) -> None:
        set_peft_model_state_dict(self.adapted, weights)

    def _last(self, folder: Path) -> list[Path]:
        kept = sorted((folder / "kept").iterdir())
        return kept[-self.strategy.averaged :]


class _KeepingFit(Fit):
    """A fit that keeps the checkpoints of all evaluations."""

    def _save(self) -> None:
        super()._save()
        name = f"step-{self.progress.step:06d}"
        shutil.copytree(self.context.checkpoints / name, self.context.checkpoints.parent / "kept" / name)


def changed(recipe: Recipe, strategy: Strategy) -> Recipe:
    """Return the recipe with the strategy's rate and alpha. A carried optimizer is measured at the end only."""
    rate = recipe.training.learning_rate * strategy.rate
    interval = 1.0 if strategy.carried else recipe.evaluation.interval_fraction
    return replace(
        recipe,
        lora=replace(recipe.lora, alpha=round(recipe.lora.alpha * strategy.scale)),
        training=replace(recipe.training, learning_rate=rate),
        evaluation=replace(recipe.evaluation, interval_fraction=interval),
    )


def with_schedule(recipe: Recipe, schedule: str, warmup_fraction: float) -> Recipe:
    """Return the recipe with another schedule."""
    return replace(recipe, training=replace(recipe.training, schedule=schedule, warmup_fraction=warmup_fraction))


def mean(weights: Sequence[Weights]) -> Weights:
    """Return the mean of several adapters' weights."""
    return {name: torch.stack([found[name] for found in weights]).mean(0) for name in weights[0]}
