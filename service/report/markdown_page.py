"""A report as Markdown. Curves are tables of a few points, because Markdown has no plots."""

from __future__ import annotations

from collections.abc import Iterator
from typing import assert_never

from service.publish.markdown import block as fenced
from service.publish.markdown import plain, table
from service.report.blocks import Block, Code, Document, Heading, Paragraph, Plot, Points, Table
from service.visible import on_one_line, visible

MARK = "<!-- codelupe report -->"
MOST_POINTS = 12


def markdown(document: Document) -> str:
    """Return the page."""
    return "\n\n".join(_page(document)) + "\n"


def _page(document: Document) -> Iterator[str]:
    yield MARK
    yield f"# {_shown(document.title)}"
    if document.missing:
        yield "Not shown:\n\n" + "\n".join(f"- it says: {_shown(said)}" for said in document.missing)
    for block in document.blocks:
        yield from _block(block)


def _block(block: Block) -> Iterator[str]:
    match block:
        case Heading():
            yield f"## {_shown(block.text)}"
        case Paragraph():
            yield f"{_shown(block.about)}: {_shown(block.text)}"
        case Table():
            yield from _table(block.title, list(block.columns) or ["", *[""] * (len(block.rows[0]) - 1)], block.rows)
        case Code():
            yield f"**{_shown(block.title)}**"
            yield fenced(visible(block.text).encode("utf-8", "replace").decode(), "")
        case Plot():
            steps = sorted({step for points in block.curves.values() for step, _ in _few(points)})
            found = {name: dict(points) for name, points in block.curves.items()}
            rows = [[step, *(_number(found[name].get(step)) for name in found)] for step in steps]
            rows += [[name, _number(value), *[None] * (len(found) - 1)] for name, value in block.lines.items()]
            yield from _table(f"{block.title} ({block.unit})", ["step", *found], rows)
        case _:
            assert_never(block)


def _table(title: str, columns: list[str], rows: object) -> Iterator[str]:
    if title:
        yield f"**{_shown(title)}**"
    assert isinstance(rows, list | tuple)
    shown = [[None if value is None else on_one_line(str(value)) for value in row] for row in rows]
    yield table(columns, shown, longest=None)


def _few(points: Points) -> Points:
    """Return a few of the points, the last one included."""
    size = max(1, -(-len(points) // MOST_POINTS))
    return [points[-1 - place] for place in range(0, len(points), size)]


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.6g}"


def _shown(text: str) -> str:
    return plain(on_one_line(text), longest=None)
