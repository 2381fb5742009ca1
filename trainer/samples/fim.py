"""Builder `fim`: a gap in a file. Prefix and suffix are shown, the middle and its end are learned.

Nine gaps of ten lie on the syntax tree, half of those on one node (drawn by size), half on a run of siblings (around a
random stretch); every tenth, and every one of a text without a tree, lies between any two characters.
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
"""Draws of a run of siblings before a single node is taken instead."""
NODE_ATTEMPTS, MAX_HEIGHT = 512, 32
"""Draws of a single node before a random stretch is taken; nodes further above the innermost one are never taken."""
MIN_BYTES = 2
BYTES_PER_TOKEN = 2
"""A middle is at most so many bytes times max_length, as a rule half as many tokens: context has to fit beside it."""

Span = tuple[int, int]


def build_fim(row: Row, data: Data, *, seed: int) -> list[Document]:
    """One gap of one row; the same row and seed give the same gap. Prefix, middle and suffix are the row's text.

    Raises:
        Rejected: `empty` (nothing but blanks), `too_short` (no room for a gap).
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
    """Kind and place of a gap: (first character, one past the last)."""
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
    """One node, the likelier the longer it is: one of those around a random byte, at a random height.

    Heights above what is there are drawn again, so that a node's chance is its length alone.
    """
    for _ in range(NODE_ATTEMPTS):
        spans = _around(source, draw.randrange(len(source.data)), max_bytes)
        height = draw.randrange(MAX_HEIGHT)
        if height < len(spans):
            return spans[height]
    return None


def _around(source: Source, place: int, max_bytes: int) -> list[Span]:
    """The spans of the nodes around a byte, from within; those that may be a gap."""
    node = source.root.named_descendant_for_byte_range(place, place + 1)
    spans: list[Span] = []
    # a tree may be as deep as its text is long, and to find a parent it is gone through from its root
    while node is not None and node.end_byte - node.start_byte <= max_bytes and len(spans) < MAX_HEIGHT:
        span = (node.start_byte, node.end_byte)
        if span[1] - span[0] >= MIN_BYTES and span not in spans[-1:] and not source.is_all(*span):
            spans.append(span)
        node = node.parent
    return spans


def _siblings(source: Source, draw: random.Random, max_bytes: int) -> Span | None:
    """The run of children, of one node, that a random stretch touches: two of them or more."""
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
    stop = min(len(text), start + _length(draw, max_bytes // 4))  # a character has at most four bytes
    return (start, stop) if (start, stop) != (0, len(text)) else (0, stop - 1)


def _length(draw: random.Random, longest: int) -> int:
    """From one to `longest`, each order of magnitude as likely as another: gaps of a word, a line, a function."""
    return round(longest ** draw.random())


def _characters(source: Source, span: Span) -> Span:
    """A span of bytes as one of characters."""
    start = len(source.data[: span[0]].decode())
    return start, start + len(source.text(*span))
