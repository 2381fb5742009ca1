"""What a report is made of. HTML and Markdown show the same blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Points = Sequence[tuple[int, float]]


@dataclass(frozen=True, kw_only=True)
class Heading:
    """The beginning of a section."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Paragraph:
    """A line of text."""

    about: str
    """Our own word before it, such as `reason`. A text that nobody checked never begins a line."""
    text: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table. None is an empty cell."""

    title: str
    columns: Sequence[str]
    """None of them: the first cell of each row is its name."""
    rows: Sequence[Sequence[object]]


@dataclass(frozen=True, kw_only=True)
class Code:
    """A text as it is."""

    title: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Curves over steps."""

    title: str
    unit: str
    curves: Mapping[str, Points]
    lines: Mapping[str, float] = field(default_factory=dict)
    """Values that stay the same."""


Block = Heading | Paragraph | Table | Code | Plot


@dataclass(frozen=True, kw_only=True)
class Document:
    """A whole report."""

    title: str
    blocks: Sequence[Block]
    missing: Sequence[str] = ()
    """What could not be shown, and why."""
