"""What one forward pass takes: samples laid end to end, without padding.

Several processes may share a pack. Each has an equal part of its tokens, and the boundaries of the whole pack:

    pack       | a a a a a a | b b b · |      · fills the last share: a document of its own, without loss
    shares     | 0 0 0 0 0 | 1 1 1 1 1 |      the last token of share 0 predicts the first one of share 1
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One pack: concatenated samples. Or a share of one."""

    ids: torch.Tensor
    """int64 [1, tokens]"""
    positions: torch.Tensor
    """int64 [1, tokens]: from 0 in each sample."""
    lengths: tuple[int, ...]
    """Tokens of each sample: plain integers, so that reading them does not wait for the device."""
    offsets: torch.Tensor
    """int32 [samples + 1]: start of each sample and end of the last one, for kernels on the device."""
    predicting: torch.Tensor
    """int64 [supervised]: places in `ids` whose next token has loss, ascending."""
    labels: torch.Tensor
    """int64 [supervised]: those next tokens."""
    weights: torch.Tensor | None = None
    """float32 [supervised]: factor of each position's loss. None: all are 1."""
    start: int = 0
    """Place of the first token in the pack. Above 0 in a share of it."""

    def pin_memory(self) -> Batch:
        """Copy to page-locked memory. The DataLoader calls this."""
        return self._mapped(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device) -> Batch:
        """Copy the batch to a device."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def _mapped(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        return replace(
            self,
            ids=change(self.ids),
            positions=change(self.positions),
            offsets=change(self.offsets),
            predicting=change(self.predicting),
            labels=change(self.labels),
            weights=None if self.weights is None else change(self.weights),
        )

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @property
    def supervised(self) -> int:
        """Positions with loss."""
        return len(self.labels)

    def sum_by_sample(self, values: torch.Tensor) -> torch.Tensor:
        """Sum values of the supervised positions, [supervised], for each sample: float64 [samples]."""
        owner = torch.searchsorted(self.offsets.long(), self.predicting + self.start, right=True) - 1
        sums = torch.zeros(len(self.lengths), dtype=torch.float64, device=values.device)
        return sums.index_add(0, owner, values.double())

    def share(self, place: int, number: int) -> Batch:
        """Return the part of one of `number` processes, counted from 0. Called before the batch goes to its device.

        Each position's label was chosen in the whole pack, so it may be a token of the next share.
        """
        if number == 1:
            return self
        whole = self.filled(-(-self.tokens // number) * number)
        size = whole.tokens // number
        tokens = slice(place * size, (place + 1) * size)
        inside = slice(*torch.searchsorted(self.predicting, torch.tensor([tokens.start, tokens.stop])).tolist())
        return replace(
            whole,
            ids=whole.ids[:, tokens],
            positions=whole.positions[:, tokens],
            predicting=self.predicting[inside] - tokens.start,
            labels=self.labels[inside],
            weights=None if self.weights is None else self.weights[inside],
            start=tokens.start,
        )

    def filled(self, size: int) -> Batch:
        """Add a document without loss, so that the pack has `size` tokens."""
        count = size - self.tokens
        if count == 0:
            return self
        lengths = (*self.lengths, count)
        return replace(
            self,
            ids=torch.cat([self.ids, self.ids.new_zeros(1, count)], dim=1),
            positions=torch.cat([self.positions, torch.arange(count)[None]], dim=1),
            lengths=lengths,
            offsets=sample_offsets(lengths),
        )

    def split(self, budget: int) -> list[Batch]:
        """Split into packs of at most `budget` tokens, in order. A longer sample gets its own pack."""
        cuts, used = [0], 0
        starts = [0, *accumulate(self.lengths)]
        for index, length in enumerate(self.lengths):
            if used and used + length > budget:
                cuts.append(index)
                used = 0
            used += length
        return [self._part(starts, *pair) for pair in zip(cuts, [*cuts[1:], len(self.lengths)], strict=True)]

    def _part(self, starts: Sequence[int], first: int, last: int) -> Batch:
        """Samples first … last − 1. Called before the batch goes to its device."""
        start, stop = starts[first], starts[last]
        inside = slice(*torch.searchsorted(self.predicting, torch.tensor([start, stop])).tolist())
        return Batch(
            ids=self.ids[:, start:stop],
            positions=self.positions[:, start:stop],
            lengths=self.lengths[first:last],
            offsets=sample_offsets(self.lengths[first:last]),
            predicting=self.predicting[inside] - start,
            labels=self.labels[inside],
            weights=None if self.weights is None else self.weights[inside],
        )


def sample_offsets(lengths: Sequence[int]) -> torch.Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
