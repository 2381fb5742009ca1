"""Assigns samples to optimizer steps, packs and ranks.

    epoch    all samples, shuffled by seed and epoch; the first may go from simple to complex
    window   batch_size × accumulation × processes of them: one optimizer step
    packs    the window's samples concatenated, by best fit into a token budget; rank r takes r, r + world, …

    pack     | sample a          | sample b      | sample c |     no padding; attention stays inside a sample,
    position | 0 1 2 3 …         | 0 1 2 …       | 0 1 …    |     and positions start again

The gradient of a window is summed and divided by its supervised tokens, so packing does not change it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch.utils.data import DataLoader, Dataset

from trainer.data.encoder import IGNORED, TokenSample
from trainer.model.batch import Batch, sample_offsets
from trainer.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Window:
    """The samples of one optimizer step, on all ranks."""

    epoch: int
    """Counted from 0."""
    members: tuple[int, ...]
    """Indices of samples."""
    tokens: int
    supervised: int


class Windows(Sequence[Window]):
    """All windows of a run: window k belongs to step k + 1.

    Windows refer to `samples` by index. They hold the run's samples, then the variants without facts.
    """

    def __init__(
        self,
        samples: Sequence[TokenSample],
        *,
        size: int,
        num_epochs: int,
        seed: int,
        max_steps: int | None = None,
        simple_first: bool = False,
        bare_fraction: float = 0.0,
    ) -> None:
        """
        Args:
            max_steps: most windows. None: as many as the epochs have
            simple_first: whether the first epoch goes from simple to complex samples
            bare_fraction: share of the last windows, whose samples are without facts
        """
        self.num_samples = len(samples)
        facts = [index for index, sample in enumerate(samples) if sample.bare is not None]
        self.samples: Sequence[TokenSample] = [*samples, *(s.bare for s in samples if s.bare is not None)]
        self.bare = {index: self.num_samples + place for place, index in enumerate(facts)}
        self.size = size
        self.seed = seed
        self.simple_first = simple_first
        self.per_epoch = -(-self.num_samples // size)
        of_epochs = self.per_epoch * num_epochs
        self.steps = of_epochs if max_steps is None else min(of_epochs, max_steps)
        self.first_bare = len(self) - round(len(self) * bare_fraction)
        self._shuffled: tuple[int, list[int]] = (-1, [])

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> Window:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        epoch, place = divmod(index, self.per_epoch)
        order = self._order(epoch)[place * self.size : (place + 1) * self.size]
        if index >= self.first_bare:
            order = [self.bare.get(member, member) for member in order]
        return Window(
            epoch=epoch,
            members=tuple(order),
            tokens=sum(self.samples[i].tokens for i in order),
            supervised=sum(self.samples[i].supervised for i in order),
        )

    def _order(self, epoch: int) -> list[int]:
        if self._shuffled[0] != epoch:
            generator = torch.Generator().manual_seed((self.seed << 16) + epoch)
            order = torch.randperm(self.num_samples, generator=generator).tolist()
            if self.simple_first and epoch == 0:
                bits = complexities(self.samples[: self.num_samples])
                order.sort(key=bits.__getitem__)  # stable: the seed decides between equals
            self._shuffled = (epoch, order)
        return self._shuffled[1]


def complexities(samples: Sequence[TokenSample]) -> list[float]:
    """Return how complex each sample is: the bits of its tokens, by how often each token occurs in all samples.

    Long samples and those of rare tokens are complex (Platanios et al. 2019, section 3.2: d_rarity).
    """
    vocabulary = 1 + max((int(sample.ids.max()) for sample in samples), default=0)
    counts = torch.zeros(vocabulary, dtype=torch.float64)
    for sample in samples:
        counts.index_add_(0, sample.ids.long(), torch.ones(sample.tokens, dtype=torch.float64))
    bits = -(counts / counts.sum()).log2()
    return [float(bits[sample.ids.long()].sum()) for sample in samples]


def pack_budget(recipe: Recipe) -> int:
    """Return the tokens of one forward pass: as many as a padded batch of the recipe's size."""
    return recipe.training.batch_size * recipe.data.max_length


def pack_samples(
    members: Sequence[int], samples: Sequence[TokenSample], *, budget: int, rank: int, world: int
) -> list[tuple[int, ...]]:
    """Return this rank's packs of at most `budget` tokens. Each rank gets the same number of packs.

    The algorithm is best-fit decreasing: the longest sample first, each into the fullest pack with room for it. A rank
    without samples gets an empty pack, so that the ranks stay in step.
    """
    packs: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, number of the pack), ascending
    for index in sorted(members, key=lambda i: (-samples[i].tokens, i)):
        tokens = samples[index].tokens
        place = bisect_left(room, (tokens, 0))
        left, number = room.pop(place) if place < len(room) else (budget, len(packs))
        if number == len(packs):
            packs.append([])
        packs[number].append(index)
        insort(room, (max(0, left - tokens), number))
    count = max(1, -(-len(packs) // world)) * world
    packs += [[] for _ in range(count - len(packs))]
    return [tuple(pack) for pack in packs[rank::world]]


def deal_samples(members: Sequence[int], *, size: int, rank: int, world: int) -> list[tuple[int, ...]]:
    """Return this rank's groups of at most `size` samples, in order. Each rank gets the same number of groups.

    This is training without packing. A rank without samples gets an empty group, so that the ranks stay in step.
    """
    mine = members[rank::world]
    count = max(1, -(-len(members) // (size * world)))
    return [tuple(mine[place * size : (place + 1) * size]) for place in range(count)]


def collate(chosen: Sequence[TokenSample]) -> Batch:
    """Concatenate samples. Each position predicts the next token; the last position of a sample predicts nothing.

    Without samples, the pack has one token without loss.
    """
    if not chosen:
        nothing = torch.zeros(0, dtype=torch.int64)
        one = torch.zeros((1, 1), dtype=torch.int64)
        return Batch(
            ids=one, positions=one, lengths=(1,), offsets=sample_offsets((1,)), predicting=nothing, labels=nothing
        )
    lengths = tuple(sample.tokens for sample in chosen)
    labels = torch.cat([sample.labels for sample in chosen]).long()
    labels[[start for start in accumulate(lengths[:-1], initial=0)]] = IGNORED  # no token before it predicts it
    counted = (labels != IGNORED).nonzero()[:, 0]
    weights = None
    if any(sample.weight != 1.0 for sample in chosen):
        of_tokens = torch.tensor([sample.weight for sample in chosen]).repeat_interleave(torch.tensor(lengths))
        weights = of_tokens[counted]
    return Batch(
        ids=torch.cat([sample.ids for sample in chosen]).long()[None],
        positions=torch.cat([torch.arange(length) for length in lengths])[None],
        lengths=lengths,
        offsets=sample_offsets(lengths),
        predicting=counted - 1,
        labels=labels[counted],
        weights=weights,
    )


class _Collated(Dataset[Batch]):
    """Packs by index. Loader workers collate them."""

    def __init__(self, samples: Sequence[TokenSample], packs: Sequence[tuple[int, ...]]) -> None:
        self.samples = samples
        self.packs = packs

    def __len__(self) -> int:
        return len(self.packs)

    def __getitem__(self, index: int) -> Batch:
        return collate([self.samples[i] for i in self.packs[index]])


def load_batches(
    samples: Sequence[TokenSample], packs: Sequence[tuple[int, ...]], *, workers: int, pin_memory: bool
) -> Iterator[Batch]:
    """Yield the packs in order. `workers` processes prepare them ahead (0: prepare them here, on demand)."""
    loader = DataLoader(
        _Collated(samples, packs),
        batch_size=None,
        num_workers=workers,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # its own generator: loaders draw from it, and dropout must not depend on that
    )
    return iter(loader)
