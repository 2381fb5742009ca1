"""Which samples each optimizer step sees, in which micro-batches, on which rank.

    epoch    all samples, shuffled by seed and epoch
    window   batch_size × accumulation × world of them: one optimizer step
    micro    the window sorted by length and cut; rank r takes r, r + world, …

The gradient of a window is summed and divided by its supervised tokens, so the order inside a window changes nothing
but the padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, Dataset

from trainer.data.encoder import IGNORED, TokenSample


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Samples side by side, padded on the right."""

    ids: torch.Tensor
    """int64 [samples, longest]"""
    mask: torch.Tensor
    """int64 [samples, longest]: 1 on tokens, 0 on padding."""
    labels: torch.Tensor
    """int64 [samples, longest]: what to predict at each position (shifted already), IGNORED elsewhere."""

    def pin_memory(self) -> Batch:
        """Copy to page-locked memory; the DataLoader calls this."""
        return Batch(ids=self.ids.pin_memory(), mask=self.mask.pin_memory(), labels=self.labels.pin_memory())

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        ids, mask, labels = (t.to(device, non_blocking=True) for t in (self.ids, self.mask, self.labels))
        return Batch(ids=ids, mask=mask, labels=labels)

    @property
    def supervised(self) -> torch.Tensor:
        """int64 []: positions with loss."""
        return (self.labels != IGNORED).sum()

    def split(self, rows: int) -> list[Batch]:
        """The same samples in batches of at most `rows`."""
        parts = zip(self.ids.split(rows), self.mask.split(rows), self.labels.split(rows), strict=True)
        return [Batch(ids=ids, mask=mask, labels=labels) for ids, mask, labels in parts]


@dataclass(frozen=True, kw_only=True)
class Window:
    """What one optimizer step sees, on all ranks."""

    epoch: int
    """Counted from 0."""
    members: tuple[int, ...]
    """Indices of samples."""
    tokens: int
    supervised: int


class Windows(Sequence[Window]):
    """All windows of a run: window k belongs to step k + 1."""

    def __init__(self, samples: Sequence[TokenSample], *, size: int, num_epochs: int, seed: int) -> None:
        self.samples = samples
        self.size = size
        self.num_epochs = num_epochs
        self.seed = seed
        self.per_epoch = -(-len(samples) // size)
        self._shuffled: tuple[int, list[int]] = (-1, [])

    def __len__(self) -> int:
        return self.per_epoch * self.num_epochs

    def __getitem__(self, index: int) -> Window:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        epoch, place = divmod(index, self.per_epoch)
        order = self._order(epoch)[place * self.size : (place + 1) * self.size]
        return Window(
            epoch=epoch,
            members=tuple(order),
            tokens=sum(self.samples[i].tokens for i in order),
            supervised=sum(self.samples[i].supervised for i in order),
        )

    def _order(self, epoch: int) -> list[int]:
        if self._shuffled[0] != epoch:
            generator = torch.Generator().manual_seed((self.seed << 16) + epoch)
            self._shuffled = (epoch, torch.randperm(len(self.samples), generator=generator).tolist())
        return self._shuffled[1]


def micro_batches(
    members: Sequence[int], samples: Sequence[TokenSample], *, batch_size: int, rank: int, world: int
) -> list[tuple[int, ...]]:
    """This rank's share of some samples: batches of at most `batch_size`, of like length, equally many on each rank.

    A rank for which nothing is left gets an empty batch, so that the ranks stay in step.
    """
    by_length = sorted(members, key=lambda i: (samples[i].tokens, i))
    each = -(-len(by_length) // (batch_size * world))
    count = max(1, each) * world
    least, more = divmod(len(by_length), count)
    batches, start = [], 0
    for index in range(count):
        stop = start + least + (index < more)
        batches.append(tuple(by_length[start:stop]))
        start = stop
    return batches[rank::world]


def collate(chosen: Sequence[TokenSample], *, pad: int) -> Batch:
    """Pad on the right and shift the labels. Padding is masked by place, never by its id.

    No samples at all give one row of padding without loss.
    """
    if not chosen:
        one = torch.full((1, 1), pad)
        return Batch(ids=one, mask=torch.ones_like(one), labels=torch.full_like(one, IGNORED))
    longest = max(sample.tokens for sample in chosen)
    ids = torch.full((len(chosen), longest), pad)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORED)
    for row, sample in enumerate(chosen):
        ids[row, : sample.tokens] = sample.ids
        mask[row, : sample.tokens] = 1
        labels[row, : sample.tokens - 1] = sample.labels[1:]
    return Batch(ids=ids, mask=mask, labels=labels)


class _Collated(Dataset[Batch]):
    """Batches by number; workers collate them."""

    def __init__(self, samples: Sequence[TokenSample], batches: Sequence[tuple[int, ...]], pad: int) -> None:
        self.samples = samples
        self.batches = batches
        self.pad = pad

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        return collate([self.samples[i] for i in self.batches[index]], pad=self.pad)


def load_batches(
    samples: Sequence[TokenSample],
    batches: Sequence[tuple[int, ...]],
    *,
    pad: int,
    workers: int,
    pin_memory: bool,
) -> Iterator[Batch]:
    """The batches in order, made ahead by `workers` processes (0: made here, when asked for)."""
    loader = DataLoader(
        _Collated(samples, batches, pad),
        batch_size=None,
        num_workers=workers,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # its own, for a loader draws from it: dropout must not depend on loaders made
    )
    return iter(loader)
