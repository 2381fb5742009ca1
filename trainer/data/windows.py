"""How a sample that is too long is made to fit: its context cut, or the whole cut into windows. Never truncated.

    context   a gap's prefix loses its beginning, its suffix its end; the middle stays whole
    windows   |―――――――――――|            every token of a document is learned in exactly one window;
                      |··―――――――――|    a window begins with the overlap's tokens again, without loss (··)

Cuts are at line ends, where a line end is near enough; a line longer than the room is cut between two tokens.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

from trainer.data.encoder import Encoded, Part, TokenSample, joined
from trainer.recipe import Data

NEAR = 0.25
"""Share of the room that a cut at a line end may leave unused; else it is made between two tokens."""


def fitted_samples(encoded: Encoded, data: Data) -> list[TokenSample] | None:
    """Samples of at most data.max_length tokens, or None where there is nothing that may be cut."""
    if encoded.windowed:
        return cut_windows(encoded, data)
    parts = encoded.parts
    if encoded.tokens > data.max_length:
        cut = cut_context(parts, data.max_length)
        if cut is None:
            return None
        parts = cut
    return [joined(encoded.kind, parts, with_bare=data.metadata_off_last_fraction > 0)]


def cut_context(parts: Sequence[Part], max_tokens: int) -> list[Part] | None:
    """Parts of at most `max_tokens` together: what may be shortened shares the room that the rest leaves.

    Returns:
        None where the rest alone is too long.
    """
    room = max_tokens - sum(len(part.ids) for part in parts if part.keeps == "all")
    context = [part for part in parts if part.keeps != "all"]
    if room < 0 or not context:
        return None
    rooms: dict[int, int] = {}
    for count, part in enumerate(
        sorted(context, key=lambda part: len(part.ids))
    ):  # what a short one leaves, others get
        share = room // (len(context) - count)
        rooms[id(part)] = min(len(part.ids), share)
        room -= rooms[id(part)]
    return [part if part.keeps == "all" else _shortened(part, rooms[id(part)]) for part in parts]


def cut_windows(encoded: Encoded, data: Data) -> list[TokenSample]:
    """Windows of at most data.window_tokens.

    With an overlap they have, together, loss on every supervised token but the document's first; without one, each
    window's first token is predicted by nothing.
    """
    tokens, with_bare = data.window_tokens or data.max_length, data.metadata_off_last_fraction > 0
    total = encoded.tokens
    starts = [0, *accumulate(len(part.ids) for part in encoded.parts)]
    ends = [start + end for start, part in zip(starts, encoded.parts, strict=False) for end in part.line_ends]
    samples: list[TokenSample] = []
    start = new = 0
    while True:
        stop = total if total - start <= tokens else _last_between(ends, new, min(start + tokens, total - 2), tokens)
        parts = _between(encoded.parts, starts, start, stop)
        samples.append(joined(encoded.kind, parts, unsupervised=new - start, with_bare=with_bare))
        if stop == total:
            return samples
        start, new = _first_between(ends, max(stop - data.window_overlap, start + 1), stop - 1), stop


def _last_between(ends: Sequence[int], low: int, high: int, room: int) -> int:
    """The last line end above `low` and not above `high`; `high` where none is near."""
    place = bisect_right(ends, high)
    return ends[place - 1] if place and ends[place - 1] > max(low, high - int(room * NEAR)) else high


def _first_between(ends: Sequence[int], low: int, high: int) -> int:
    """The first line end not below `low` and not above `high`; `low` where there is none."""
    place = bisect_left(ends, low)
    return ends[place] if place < len(ends) and ends[place] <= high else low


def _between(parts: Sequence[Part], starts: Sequence[int], start: int, stop: int) -> list[Part]:
    """What lies between two places of the parts laid end to end."""
    chosen = []
    for place, part in zip(starts, parts, strict=False):
        low, high = max(start - place, 0), min(stop - place, len(part.ids))
        if low < high:
            chosen.append(part if high - low == len(part.ids) else replace(part, ids=part.ids[low:high], content=None))
    return chosen


def _shortened(part: Part, tokens: int) -> Part:
    """At most so many tokens of a part, from a line start or to a line end if there is one within."""
    count = len(part.ids)
    if count <= tokens:
        return part
    if part.keeps == "start":
        return replace(part, ids=part.ids[: _last_between(part.line_ends, 0, tokens, tokens)], content=None)
    nearest = count - tokens + int(tokens * NEAR)
    return replace(part, ids=part.ids[_first_between(part.line_ends, count - tokens, nearest) :], content=None)
