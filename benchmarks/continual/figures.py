"""Computes the figures of each strategy from the losses of its streams, and writes the table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from scipy.stats import t as student

Stream = Sequence[Mapping[str, Any]]
"""The records of one strategy and seed: before the first run, then after each run."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """One strategy's figures, means over its seeds."""

    after: float
    """Loss on a slice right after its run, mean over slices."""
    gain: float
    """The base's loss on a slice minus the loss right after its run."""
    step_gain: float
    """Loss on a slice right before its run minus right after it."""
    backward: float
    """Loss on an earlier slice right after its run minus at the end. Above 0: better at the end."""
    backward_interval: tuple[float, float]
    """95 %, over the earlier slices, each a mean over seeds."""
    backward_seeds: tuple[float, float]
    """Least and greatest of the seeds' means."""
    area: float
    """Mean over all runs of the mean loss on the slices seen by then."""
    last: float
    """Mean loss on all slices after the last run."""
    unseen: float
    tokens: float
    """Training tokens of a stream, replayed ones included."""
    replayed: float
    seconds: float
    """Of the fastest seed."""
    seeds: int


def figures(streams: Sequence[Stream], names: Sequence[str], unseen: str) -> Figures:
    """Compute a strategy's figures. `names`: the slices in the order of the runs."""
    count, earlier = len(names), range(1, len(names))

    def loss(stream: Stream, run: int, number: int) -> float:
        return float(stream[run]["losses"][names[number - 1]])

    def overall(value: Any) -> float:
        return fmean(fmean(value(stream, number) for number in range(1, count + 1)) for stream in streams)

    by_slice = [[loss(s, k, k) - loss(s, count, k) for k in earlier] for s in streams]
    of_slices = [fmean(column) for column in zip(*by_slice, strict=True)]
    of_seeds = [fmean(row) for row in by_slice]
    return Figures(
        after=overall(lambda s, k: loss(s, k, k)),
        gain=overall(lambda s, k: loss(s, 0, k) - loss(s, k, k)),
        step_gain=overall(lambda s, k: loss(s, k - 1, k) - loss(s, k, k)),
        backward=fmean(of_slices),
        backward_interval=interval(of_slices),
        backward_seeds=(min(of_seeds), max(of_seeds)),
        area=overall(lambda s, run: fmean(loss(s, run, k) for k in range(1, run + 1))),
        last=overall(lambda s, k: loss(s, count, k)),
        unseen=fmean(float(stream[count]["losses"][unseen]) for stream in streams),
        tokens=fmean(sum(record.get("tokens", 0) for record in stream) for stream in streams),
        replayed=fmean(sum(record.get("replayed", 0) for record in stream) for stream in streams),
        seconds=min(sum(record.get("seconds", 0) for record in stream) for stream in streams),
        seeds=len(streams),
    )


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of the mean, by Student's t."""
    half = student.ppf(0.975, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


COLUMNS = (
    "strategy", "new slice after its run", "gain over the base", "share of sequential's gain", "gain in the run",
    "backward transfer (95 %)", "by seed", "all slices at the end", "area", "unseen", "tokens", "replayed", "seconds",
    "seeds",
)  # fmt: skip


def table(found: Mapping[str, Figures], titles: Mapping[str, str]) -> str:
    """Return the table, a strategy a line. The first one is what the others are compared with."""
    reference = next(iter(found.values()))
    lines = [f"| {' | '.join(COLUMNS)} |", "|---|" + "--:|" * (len(COLUMNS) - 1)]
    for name, its in found.items():
        low, high = its.backward_interval
        cells = [
            f"`{name}`: {titles[name]}",
            f"{its.after:.3f}",
            f"{its.gain:.3f}",
            f"{its.gain / reference.gain:.1%}",
            f"{its.step_gain:.3f}",
            f"{its.backward:+.3f} ({low:+.3f} to {high:+.3f})",
            f"{its.backward_seeds[0]:+.3f} to {its.backward_seeds[1]:+.3f}",
            f"{its.last:.3f}",
            f"{its.area:.3f}",
            f"{its.unseen:.3f}",
            f"{its.tokens:,.0f}",
            f"{its.replayed:,.0f}",
            f"{its.seconds:.0f}",
            f"{its.seeds}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def differences(one: Sequence[Stream], other: Sequence[Stream], names: Sequence[str]) -> list[tuple[float, ...]]:
    """Compare two strategies slice by slice: (mean, low, high) of one's losses minus the other's.

    Returns:
        the difference of the loss right after a slice's run, of backward transfer, and of the loss at the end
    """
    count = len(names)

    def by_slice(streams: Sequence[Stream], run_of: Callable[[int], int]) -> list[float]:
        return [fmean(stream[run_of(k)]["losses"][names[k - 1]] for stream in streams) for k in range(1, count + 1)]

    def both(run_of: Callable[[int], int]) -> list[float]:
        return [a - b for a, b in zip(by_slice(one, run_of), by_slice(other, run_of), strict=True)]

    after, last = both(lambda k: k), both(lambda k: count)
    backward = [first - end for first, end in zip(after[:-1], last[:-1], strict=True)]
    return [(fmean(values), *interval(values)) for values in (after, backward, last)]


def pairs_table(pairs: Sequence[tuple[str, str]], streams: Mapping[str, Sequence[Stream]], names: Sequence[str]) -> str:
    """Return the table of the pairs whose streams are there."""
    lines = ["| strategy | minus | new slice after its run | backward transfer | all slices at the end |"]
    lines.append("|---|---|--:|--:|--:|")
    for one, other in pairs:
        if one in streams and other in streams:
            cells = [
                f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"
                for mean, low, high in differences(streams[one], streams[other], names)
            ]
            lines.append(f"| `{one}` | `{other}` | {' | '.join(cells)} |")
    return "\n".join(lines)
