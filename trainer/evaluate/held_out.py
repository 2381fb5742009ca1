"""Measures the loss on held-out samples, in sum and by sample, with the adapter or without it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import reduce

from trainer.data.batches import load_batches, pack_samples
from trainer.data.encoder import TokenSample
from trainer.evaluate.score import SampleScore, Score, total
from trainer.model.batch import Batch
from trainer.model.memory import is_out_of_memory
from trainer.model.shards import is_divided
from trainer.model.step import inner
from trainer.stop import StopRequest


class HeldOut:
    """Measures a wrapped LossModel on a fixed set of samples."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: Any,
        samples: Sequence[TokenSample],
        *,
        budget: int,
        stop: StopRequest,
        on_progress: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> None:
        self.accelerator = accelerator
        self.model = model
        self.samples = samples
        self.stop = stop
        shared = inner(model).shared
        self.in_step = is_divided(model) or shared.size > 1
        """Whether the ranks have to make their passes together."""
        self.on_progress = on_progress
        """Is told how many samples of this process are measured, and how many there are."""
        self.budget = budget
        """Tokens per forward pass. Halved when memory runs out."""
        self.packs = pack_samples(
            range(len(samples)),
            samples,
            budget=budget,
            rank=accelerator.process_index // shared.size,
            world=accelerator.num_processes // shared.size,
        )

    def on(self, samples: Sequence[TokenSample]) -> HeldOut:
        """Return the same for other samples."""
        return HeldOut(
            self.accelerator, self.model, samples, budget=self.budget, stop=self.stop, on_progress=self.on_progress
        )

    def measure(self) -> Score:
        """Measure loss and token accuracy over all supervised tokens. Leaves the model in training mode.

        Raises:
            Stopped: a stop was requested meanwhile.
        """
        return total(self.by_sample())

    def measure_base(self) -> Score:
        """Measure with the adapter disabled."""
        return total(self.base_by_sample())

    def by_sample(self) -> list[SampleScore]:
        """Measure each sample, in the order of `samples`. Leaves the model in training mode.

        Raises:
            Stopped: a stop was requested meanwhile.
        """
        self.model.eval()
        try:
            return self._measure()
        finally:
            self.model.train()

    def base_by_sample(self) -> list[SampleScore]:
        """Measure each sample with the adapter disabled."""
        with inner(self.model).model.disable_adapter():
            return self.by_sample()

    @torch.no_grad()
    def _measure(self) -> list[SampleScore]:
        device = self.accelerator.device
        sums = torch.zeros(len(self.samples), 2, dtype=torch.float64, device=device)
        done, mine = 0, sum(map(len, self.packs))
        for pack, batch in zip(
            self.packs, load_batches(self.samples, self.packs, workers=0, pin_memory=False), strict=True
        ):
            if self.accelerator.num_processes == 1:  # several ranks stop together, at the end of a step
                self.stop.check()
            sums[list(pack)] = self._sums(batch)
            done += len(pack)
            self.on_progress(done, mine)
        return [
            SampleScore(loss_sum=loss, correct=int(correct), tokens=sample.supervised)
            for (loss, correct), sample in zip(reduce(sums, "sum").tolist(), self.samples, strict=True)
        ]

    def _sums(self, batch: Batch) -> torch.Tensor:
        """Return loss and correct predictions of each sample in a pack. Splits the pack if memory runs out."""
        while True:
            pieces = batch.split(self.budget)
            try:
                return torch.cat([self._sums_of(piece) for piece in pieces])
            except Exception as error:
                if not is_out_of_memory(error) or self.in_step or all(len(piece.lengths) == 1 for piece in pieces):
                    raise
            self.budget = max(piece.tokens for piece in pieces) // 2
            torch.cuda.empty_cache()

    def _sums_of(self, piece: Batch) -> torch.Tensor:
        share = inner(self.model).own_share(piece).to(self.accelerator.device)
        sums = torch.stack(self.model(share, by_sample=True), dim=1)
        return sums[: len(piece.lengths)]  # what fills the last share is no sample
