"""Divides a run's held-out samples: some decide when training stops, others judge the result. (no torch)

    groups of each run, in an order fixed by the seed    g1    g2   g3    g4    g5   g6    …
    part, the same in every later run                    judge stop judge judge stop judge …

A group is a set of samples that share a file. Early stopping picks the lowest of several losses, so that loss is biased
downwards. The judge therefore measures other files. A single group has to serve both.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from trainer.data.encoder import TokenSample
from trainer.data.tokenize import TokenRows

LEAST_FILES = 16
"""A file gets at most one part in 16 of the tokens (but at least one sample), so that a few long ones do not decide."""
Group = list[TokenSample]


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


def divide_held_out(
    rows: TokenRows, *, judging_tokens: int, stopping_tokens: int, seed: int, trunk: frozenset[int] = frozenset()
) -> Parts:
    """Choose the samples of both parts, each up to its number of tokens. Each part has at least one, if there is any.

    New files are those of this run and of the runs in `trunk`. They get half of a part's tokens, and what earlier files
    leave over. Earlier files are taken in turn from each run, in a fixed order, so that later runs measure the same.
    """
    new: dict[bool, list[Group]] = {True: [], False: []}
    earlier: dict[bool, list[Group]] = {True: [], False: []}
    for run, rank, group in _ranked(rows, seed):
        kept = new if run is None or run in trunk else earlier
        kept[rank % 3 != 1].append(group)
    judging = _filled(new[True], earlier[True], judging_tokens)
    stopping = _filled(new[False], earlier[False], stopping_tokens)
    if not judging or not stopping:
        everything = new[True] + new[False] + earlier[True] + earlier[False]
        judging = judging or _filled(everything, [], judging_tokens)
        stopping = stopping or _filled(everything, [], stopping_tokens)
    return Parts(judging=judging, stopping=stopping)


def _ranked(rows: TokenRows, seed: int) -> list[tuple[int | None, int, Group]]:
    """Return run, rank within the run, and group: first the first group of each run, then the second ones, …

    The order within a run is that of the database's query `held_out_order`.
    """

    def order(group: Group) -> str:
        return hashlib.md5(f"{seed}:{group[0].file_id}".encode(), usedforsecurity=False).hexdigest()

    of_run: dict[int | None, list[Group]] = defaultdict(list)
    for group in sorted(_groups(rows.samples), key=order):
        of_run[rows.runs[group[0].file_id]].append(group)
    ranked = [(run, rank, group) for run, groups in of_run.items() for rank, group in enumerate(groups)]
    return sorted(ranked, key=lambda found: (found[1], order(found[2])))


def _filled(new: Sequence[Group], earlier: Sequence[Group], budget: int) -> list[TokenSample]:
    """Take groups up to `budget` tokens: new ones up to half of it, then earlier ones, then the other new ones."""
    share = max(1, budget // LEAST_FILES)
    taken: list[TokenSample] = []
    left = budget
    put_off: list[Group] = []
    for group in new:
        if earlier and left <= budget // 2:
            put_off.append(group)
        else:
            left -= _take(group, taken, left, share)
    for group in (*earlier, *put_off):
        left -= _take(group, taken, left, share)
    return taken


def _take(group: Group, taken: list[TokenSample], left: int, share: int) -> int:
    """Append the group's samples as far as they fit. Returns their tokens."""
    used = 0
    for sample in group:
        first_of_all = not taken
        fits = sample.tokens <= left - used and (used == 0 or used + sample.tokens <= share)
        if fits or first_of_all:
            taken.append(sample)
            used += sample.tokens
    return used


def _groups(samples: Iterable[TokenSample]) -> Iterable[Group]:
    """Group samples that share a file, directly or through others, in the order of their first samples."""
    groups: dict[int, Group] = {}
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
