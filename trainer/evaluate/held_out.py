"""Measures the held-out loss of the candidate, and of the base with the adapter disabled."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import reduce

from trainer.data.batches import load_batches, pack_samples
from trainer.data.encoder import TokenSample
from trainer.data.tokenize import TokenRows
from trainer.evaluate.score import Score
from trainer.model.batch import Batch
from trainer.model.memory import is_out_of_memory
from trainer.stop import StopRequest


def choose_held_out(rows: TokenRows, *, max_tokens: int, seed: int) -> list[TokenSample]:
    """Choose the samples to measure: first this run's rows, then earlier ones, each in seeded order.

    Takes whole samples up to `max_tokens`, but at least one if there is any.
    """
    order = list(rows.samples)
    random.Random(seed).shuffle(order)
    order.sort(key=lambda sample: sample.file_id not in rows.fresh)
    chosen: list[TokenSample] = []
    left = max_tokens
    for sample in order:
        if sample.tokens <= left or not chosen:
            chosen.append(sample)
            left -= sample.tokens
    return chosen


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
    ) -> None:
        self.accelerator = accelerator
        self.model = model
        self.samples = samples
        self.stop = stop
        self.budget = budget
        """Tokens per forward pass. Halved when memory runs out."""
        self.packs = pack_samples(
            range(len(samples)),
            samples,
            budget=budget,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
        )

    def measure(self) -> Score:
        """Measure loss and token accuracy over all supervised tokens. Leaves the model in training mode.

        Raises:
            Stopped: a stop was requested meanwhile.
        """
        self.model.eval()
        try:
            return self._measure()
        finally:
            self.model.train()

    def measure_base(self) -> Score:
        """Measure with the adapter disabled."""
        with self.accelerator.unwrap_model(self.model).model.disable_adapter():
            return self.measure()

    @torch.no_grad()
    def _measure(self) -> Score:
        device = self.accelerator.device
        sums = torch.zeros(3, dtype=torch.float64, device=device)
        for batch in load_batches(self.samples, self.packs, workers=0, pin_memory=False):
            if self.accelerator.num_processes == 1:  # several ranks stop together, at the end of a step
                self.stop.check()
            sums += self._sums(batch)
        loss_sum, correct_sum, tokens = reduce(sums, "sum").tolist()
        return Score(loss=loss_sum / tokens, token_accuracy=correct_sum / tokens, tokens=int(tokens))

    def _sums(self, batch: Batch) -> torch.Tensor:
        """Return loss, correct predictions and supervised tokens of a pack. Splits it if memory runs out."""
        while True:
            pieces = batch.split(self.budget)
            try:
                return torch.stack([self._sums_of(piece) for piece in pieces]).sum(0)
            except Exception as error:
                alone = self.accelerator.num_processes == 1
                if not is_out_of_memory(error) or not alone or all(len(piece.lengths) == 1 for piece in pieces):
                    raise
            self.budget = max(piece.tokens for piece in pieces) // 2
            torch.cuda.empty_cache()

    def _sums_of(self, piece: Batch) -> torch.Tensor:
        moved = piece.to(self.accelerator.device)
        loss, correct = self.model(moved)
        return torch.stack([loss.double(), correct.double(), loss.new_tensor(moved.supervised).double()])
