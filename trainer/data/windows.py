"""Fits long samples: cuts their context, or cuts them into windows. Supervised tokens are never dropped.

    context   a gap's prefix loses its start, its suffix loses its end; the middle stays whole
    windows   |―――――――――――|            each token of a document has loss in exactly one window;
                      |··―――――――――|    a window repeats the overlap's tokens, without loss (··)

Cuts are at a near line end. A line that is longer than the limit is cut between two tokens.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

from trainer.data.encoder import Encoded, Part, TokenSample, joined
from trainer.recipe import Data

NEAR = 0.25
"""Maximum share of the limit that a cut at a line end may waste. Otherwise the cut is between two tokens."""


def fitted_samples(encoded: Encoded, data: Data) -> list[TokenSample] | None:
    """Return samples of at most data.max_length tokens, or None if the sample cannot be cut."""
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
    """Shorten the context so that all parts have at most `max_tokens`. Context parts share the remaining room.

    Returns:
        The parts, or None if the other parts alone are too long.
    """
    room = max_tokens - sum(len(part.ids) for part in parts if part.keeps == "all")
    context = [part for part in parts if part.keeps != "all"]
    if room < 0 or not context:
        return None
    rooms: dict[int, int] = {}
    for count, part in enumerate(
        sorted(context, key=lambda part: len(part.ids))
    ):  # longer parts get the room that short ones leave
        share = room // (len(context) - count)
        rooms[id(part)] = min(len(part.ids), share)
        room -= rooms[id(part)]
    return [part if part.keeps == "all" else _shortened(part, rooms[id(part)]) for part in parts]


def cut_windows(encoded: Encoded, data: Data) -> list[TokenSample]:
    """Cut a document into windows of at most data.window_tokens.

    With an overlap, every supervised token except the document's first has loss. Without one, the first token of each
    window has no loss.
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
    """Return the last line end in (low, high], or `high` if none is near."""
    place = bisect_right(ends, high)
    return ends[place - 1] if place and ends[place - 1] > max(low, high - int(room * NEAR)) else high


def _first_between(ends: Sequence[int], low: int, high: int) -> int:
    """Return the first line end in [low, high], or `low` if there is none."""
    place = bisect_left(ends, low)
    return ends[place] if place < len(ends) and ends[place] <= high else low


def _between(parts: Sequence[Part], starts: Sequence[int], start: int, stop: int) -> list[Part]:
    """Return the tokens between two positions of the concatenated parts."""
    chosen = []
    for place, part in zip(starts, parts, strict=False):
        low, high = max(start - place, 0), min(stop - place, len(part.ids))
        if low < high:
            chosen.append(part if high - low == len(part.ids) else replace(part, ids=part.ids[low:high], content=None))
    return chosen


def _shortened(part: Part, tokens: int) -> Part:
    """Shorten a part to at most `tokens`, at a line boundary if there is one."""
    count = len(part.ids)
    if count <= tokens:
        return part
    if part.keeps == "start":
        return replace(part, ids=part.ids[: _last_between(part.line_ends, 0, tokens, tokens)], content=None)
    nearest = count - tokens + int(tokens * NEAR)
    return replace(part, ids=part.ids[_first_between(part.line_ends, count - tokens, nearest) :], content=None)
