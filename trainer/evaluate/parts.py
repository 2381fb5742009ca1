"""Divides a run's held-out samples: some decide when training stops, others judge the result. (no torch)

    fresh groups, then earlier ones, each in seeded order    g1  g2  g3  g4  g5 …
    dealt in turn                                           judge stop judge stop judge …

A group is a set of samples that share a file. Early stopping picks the lowest of several losses, so that loss is biased
downwards. The judge therefore measures other files. A single group has to serve both.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from trainer.data.encoder import TokenSample
from trainer.data.tokenize import TokenRows


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The held-out samples that a run measures."""

    stopping: Sequence[TokenSample] = ()
    """Measured at each evaluation of the fit. They choose the best step."""
    judging: Sequence[TokenSample] = ()
    """Measured once, with the final weights."""

    @property
    def disjoint(self) -> bool:
        """Whether no sample serves both."""
        return not {id(sample) for sample in self.stopping} & {id(sample) for sample in self.judging}

    @property
    def samples(self) -> list[TokenSample]:
        """Return all samples, each once."""
        return list({id(sample): sample for sample in (*self.judging, *self.stopping)}.values())


def divide_held_out(rows: TokenRows, *, max_tokens: int, seed: int) -> Parts:
    """Choose the samples to measure, up to `max_tokens` in all, and divide them by file.

    This run's rows come first, then earlier ones, each in seeded order. At least one sample is taken, if there is any.
    """
    groups = list(_groups(rows.samples))
    random.Random(seed).shuffle(groups)
    groups.sort(key=lambda group: all(sample.file_id not in rows.fresh for sample in group))
    chosen: list[list[TokenSample]] = []
    left = max_tokens
    for group in groups:
        taken: list[TokenSample] = []
        for sample in group:
            if sample.tokens <= left or not (chosen or taken):
                taken.append(sample)
                left -= sample.tokens
        if taken:
            chosen.append(taken)
    judging, stopping = chosen[::2], chosen[1::2] or chosen
    return Parts(judging=[s for group in judging for s in group], stopping=[s for group in stopping for s in group])


def _groups(samples: Iterable[TokenSample]) -> Iterable[list[TokenSample]]:
    """Group samples that share a file, directly or through others, in the order of their first samples."""
    groups: dict[int, list[TokenSample]] = {}
    of_file: dict[int, int] = {}
    for number, sample in enumerate(samples):
        files = [file_id for file_id, _ in sample.shares]
        merged = sorted({of_file[file_id] for file_id in files if file_id in of_file})
        target = merged[0] if merged else number
        joined = [member for group in merged for member in groups.pop(group)]
        groups[target] = [*joined, sample]
        for member in groups[target]:
            of_file.update({file_id: target for file_id, _ in member.shares})
    return groups.values()
