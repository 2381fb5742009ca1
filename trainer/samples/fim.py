"""Builder `fim`: fill-in-the-middle. Prefix and suffix are context; the middle and its end token have loss.

Nine of ten gaps follow the syntax tree: half of them are one node (drawn by size), half are a run of siblings (around a
random span). Every tenth gap, and every gap in a text without a tree, lies between random characters.
"""

from __future__ import annotations

import random
from typing import Literal

from trainer.recipe import Data
from trainer.records import Row
from trainer.samples.sample import Control, Document, Rejected, Text
from trainer.samples.syntax import Source, parse

RANDOM_SHARE = 0.1
ATTEMPTS = 24
"""Attempts to draw a run of siblings before falling back to a single node."""
NODE_ATTEMPTS, MAX_HEIGHT = 512, 32
"""Attempts to draw a node before falling back to a random span, and maximum height above the innermost node."""
MIN_BYTES = 2
BYTES_PER_TOKEN = 2
"""A middle has at most this many bytes times max_length, usually half as many tokens. The rest is for context."""

Span = tuple[int, int]


def build_fim(row: Row, data: Data, *, seed: int) -> list[Document]:
    """Make one gap in a row, deterministic by row and seed. Prefix, middle and suffix add up to the row's text.

    Raises:
        Rejected: `empty` (only whitespace), `too_short` (no room for a gap).
    """
    if not row.content.strip():
        raise Rejected("empty")
    draw = random.Random(f"{seed}:fim:{row.file_id}:{len(row.content)}")
    kind, (start, stop) = draw_gap(row, draw, max_bytes=BYTES_PER_TOKEN * data.max_length)
    pieces = (
        Control(role="fim_prefix"),
        Text(text=row.content[:start], keeps="end"),
        Control(role="fim_suffix"),
        Text(text=row.content[stop:], keeps="start"),
        Control(role="fim_middle"),
        Text(text=row.content[start:stop], supervised=True),
        Control(role="fim_end", supervised=True),
    )
    return [Document(file_id=row.file_id, kind=kind, pieces=pieces)]


def draw_gap(
    row: Row, draw: random.Random, *, max_bytes: int
) -> tuple[Literal["fim_node", "fim_siblings", "fim_random"], Span]:
    """Return kind and span of a gap: (first character, one past the last)."""
    by_syntax, single = draw.random() >= RANDOM_SHARE, draw.random() < 0.5
    source = parse(row.language, row.content, row.path) if by_syntax else None
    if source is not None:
        span = None if single else _siblings(source, draw, max_bytes)
        if span is not None:
            return "fim_siblings", _characters(source, span)
        span = _node(source, draw, max_bytes)
        if span is not None:
            return "fim_node", _characters(source, span)
    return "fim_random", _random_span(row.content, draw, max_bytes)


def _node(source: Source, draw: random.Random, max_bytes: int) -> Span | None:
    """Draw a node around a random byte, at a random height. Longer nodes are likelier.

    Heights above the root are drawn again, so that a node's probability depends only on its length.
    """
    for _ in range(NODE_ATTEMPTS):
        spans = _around(source, draw.randrange(len(source.data)), max_bytes)
        height = draw.randrange(MAX_HEIGHT)
        if height < len(spans):
            return spans[height]
    return None


def _around(source: Source, place: int, max_bytes: int) -> list[Span]:
    """Return the spans of the nodes around a byte that can be gaps, innermost first."""
    node = source.root.named_descendant_for_byte_range(place, place + 1)
    spans: list[Span] = []
    # a tree can be as deep as its text is long, and finding a parent walks down from the root
    while node is not None and node.end_byte - node.start_byte <= max_bytes and len(spans) < MAX_HEIGHT:
        span = (node.start_byte, node.end_byte)
        if span[1] - span[0] >= MIN_BYTES and span not in spans[-1:] and not source.is_all(*span):
            spans.append(span)
        node = node.parent
    return spans


def _siblings(source: Source, draw: random.Random, max_bytes: int) -> Span | None:
    """Draw a run of two or more children of one node that a random span touches."""
    for _ in range(ATTEMPTS):
        first = draw.randrange(len(source.data))
        last = min(len(source.data), first + _length(draw, max_bytes))
        parent = source.root.descendant_for_byte_range(first, last)
        if parent is None:
            continue
        run = [child for child in parent.named_children if child.end_byte > first and child.start_byte < last]
        if len(run) < 2:
            continue
        start, stop = run[0].start_byte, run[-1].end_byte
        if stop - start <= max_bytes and not source.is_all(start, stop):
            return start, stop
    return None


def _random_span(text: str, draw: random.Random, max_bytes: int) -> Span:
    if len(text) < 2:
        raise Rejected("too_short")
    start = draw.randrange(len(text))
    stop = min(len(text), start + _length(draw, max_bytes // 4))  # a character has up to four bytes
    return (start, stop) if (start, stop) != (0, len(text)) else (0, stop - 1)


def _length(draw: random.Random, longest: int) -> int:
    """Draw a length from 1 to `longest`, log-uniformly: gaps of a word, a line or a function."""
    return round(longest ** draw.random())


def _characters(source: Source, span: Span) -> Span:
    """Convert a span of bytes to one of characters."""
    start = len(source.data[: span[0]].decode())
    return start, start + len(source.text(*span))
