"""The forward and backward passes of a step: its packs, and the gradient of its window's mean loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from trainer.data.batches import deal_samples, load_batches, pack_budget, pack_samples
from trainer.errors import OutOfMemory
from trainer.fit.context import FitContext
from trainer.model.batch import Batch
from trainer.model.fused_lora import forget_outputs
from trainer.model.memory import is_out_of_memory


class Passes:
    """This rank's passes of all remaining steps."""

    def __init__(self, context: FitContext) -> None:
        self.context = context
        self.batches: Iterator[Batch] = iter(())
        self.per_step: list[int] = []
        """Number of packs of each step."""
        self.budget = pack_budget(context.recipe)
        """Tokens per forward pass. Halved when memory runs out."""

    def plan(self, done: int) -> None:
        """Plan the packs of all steps after the first `done` as one stream, which loader workers prepare ahead."""
        training, accelerator = self.context.recipe.training, self.context.accelerator
        windows = self.context.windows
        planned = [self._packs(windows[step].members) for step in range(done, len(windows))]
        self.per_step = [0] * done + [len(batches) for batches in planned]
        self.batches = load_batches(
            windows.samples,
            [batch for batches in planned for batch in batches],
            workers=training.dataloader_workers,
            pin_memory=training.pin_memory and accelerator.device.type == "cuda",
        )

    def _packs(self, members: Sequence[int]) -> list[tuple[int, ...]]:
        """This rank's packs of a window, or with packing off its groups of samples."""
        training, accelerator = self.context.recipe.training, self.context.accelerator
        together = self.context.together.model.shared.size  # processes that share packs get the same ones
        rank, world = accelerator.process_index // together, accelerator.num_processes // together
        if not training.packing:
            return deal_samples(members, size=training.batch_size, rank=rank, world=world)
        return pack_samples(members, self.context.windows.samples, budget=self.budget, rank=rank, world=world)

    def next_batches(self, step: int) -> list[Batch]:
        """Return the packs of a step, counted from 1. Steps come in order."""
        return [next(self.batches) for _ in range(self.per_step[step - 1])]

    def gradients(self, batches: Sequence[Batch], supervised: int, step: int) -> float:
        """Compute the gradients of the window's mean loss. Returns that loss.

        When memory runs out, repeat the window with half as many tokens per forward pass. The gradient is the same.
        """
        context = self.context
        pieces = [piece for batch in batches for piece in batch.split(self.budget)]
        while True:
            loss: float | None = None
            try:
                loss = self._accumulate(pieces, supervised)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            # The error and the memory held by its frames are free now.
            most = float(max(piece.tokens for piece in pieces))
            stuck = float(loss is None and all(len(piece.lengths) == 1 for piece in pieces))
            if loss is None and context.together.in_step:
                stuck = 1.0  # the other ranks wait in the middle of their pass, and are ended
            else:
                failed, stuck, most = context.together.most(float(loss is None), stuck, most)
                if loss is not None and not failed:
                    context.together.sum_gradients()
                    return float(context.together.total(loss)) / supervised
            context.optimizer.zero_grad()
            forget_outputs(context.adapted)
            torch.cuda.empty_cache()
            if stuck:
                suspects = context.suspects("out_of_memory", step, context.members(step), context.held_out.samples)
                raise OutOfMemory(f"step {step}: out of memory with {int(most)} tokens per forward pass", suspects)
            self.budget = int(most) // 2
            pieces = [piece for batch in batches for piece in batch.split(self.budget)]
            context.events.emit("out_of_memory", step=step, tokens=self.budget)

    def _accumulate(self, pieces: Sequence[Batch], supervised: int) -> float:
        """Run this rank's packs forward and backward, and return their summed loss.

        A pack's gradient is weighted by its share of the window's tokens on all ranks.
        """
        context = self.context
        if context.routing:
            context.routing.begin()  # a window that ran out of memory is counted once
        total = torch.zeros((), dtype=torch.float64, device=context.accelerator.device)
        own_share = context.together.model.own_share
        for piece in pieces:
            loss, _ = context.model(own_share(piece).to(context.accelerator.device))
            context.together.backward(loss * (context.together.averaged_over / supervised))
            total += loss.detach().double()
        return float(total)
