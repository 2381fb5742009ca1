"""A report as one HTML file that loads nothing and runs nothing. Every text is escaped."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import assert_never

from service.report.blocks import Block, Code, Document, Heading, Paragraph, Plot, Table
from service.report.plots import svg
from service.visible import visible

MARK = '<meta name="generator" content="codelupe report">'
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""matplotlib gives each line of a plot its style in an attribute."""
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1f2328; background: #fff }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #d0d7de }
table { border-collapse: collapse; margin: .8rem 0; display: block; overflow-x: auto }
caption { text-align: left; font-weight: 600; padding: .3rem 0 } th, td { text-align: left; padding: .25rem .7rem; border: 1px solid #d0d7de; vertical-align: top; overflow-wrap: break-word }
pre { background: #f6f8fa; padding: .7rem; overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere } svg { max-width: 100%; height: auto; background: #fff }
h3 { font-size: 1rem; margin-bottom: .2rem } .missing { border-left: 4px solid #9a6700; padding-left: .8rem }
@media (prefers-color-scheme: dark) { body { color: #e6edf3; background: #0d1117 } pre { background: #161b22 } th, td, h2 { border-color: #30363d } }
"""  # noqa: E501


def html(document: Document) -> str:
    """Return the page."""
    return "\n".join(_page(document)) + "\n"


def _page(document: Document) -> Iterator[str]:
    yield '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">'
    yield f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">\n' + MARK
    yield f"<title>{_shown(document.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>"
    yield f"<h1>{_shown(document.title)}</h1>"
    if document.missing:
        yield '<div class="missing"><p>Not shown:</p>\n<ul>'
        yield from (f"<li>{_shown(said)}</li>" for said in document.missing)
        yield "</ul></div>"
    for block in document.blocks:
        yield from _block(block)
    yield "</body>\n</html>"


def _block(block: Block) -> Iterator[str]:
    match block:
        case Heading():
            yield f"<h2>{_shown(block.text)}</h2>"
        case Paragraph():
            yield f"<p>{_shown(block.about)}: {_shown(block.text)}</p>"
        case Table():
            yield from _table(block)
        case Code():
            yield f"<h3>{_shown(block.title)}</h3>\n<pre><code>{_shown(block.text)}</code></pre>"
        case Plot():
            yield f"<h3>{_shown(block.title)}</h3>\n{svg(block)}"
        case _:
            assert_never(block)


def _table(table: Table) -> Iterator[str]:
    yield f"<table>{f'<caption>{_shown(table.title)}</caption>' if table.title else ''}"
    if table.columns:
        yield f"<tr>{''.join(f'<th>{_shown(name)}</th>' for name in table.columns)}</tr>"
    for row in table.rows:
        cells = [_shown("" if value is None else str(value)) for value in row]
        first = f"<th>{cells[0]}</th>" if not table.columns else f"<td>{cells[0]}</td>"
        yield f"<tr>{first}{''.join(f'<td>{cell}</td>' for cell in cells[1:])}</tr>"
    yield "</table>"


def _shown(text: str) -> str:
    return escape(visible(text).encode("utf-8", "replace").decode())
