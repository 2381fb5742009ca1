"""Builder `chunks`: the file's text as it stands, learned from its first token to its end.

A document longer than a window is cut by tokens, which builders do not know: trainer/data/windows.py.
"""

from __future__ import annotations

from trainer.recipe import Data
from trainer.records import Row
from trainer.samples.facts import fact_block
from trainer.samples.sample import Control, Document, Rejected, Text


def build_chunks(row: Row, data: Data, *, seed: int) -> list[Document]:
    """The whole file as one document, closed by the end token.

    Raises:
        Rejected: `empty` (nothing but blanks).
    """
    if not row.content.strip():
        raise Rejected("empty")
    facts = fact_block(row, data)
    pieces = (
        *([Text(text=facts, facts=True)] if facts else ()),
        Text(text=row.content, supervised=True),
        Control(role="end", supervised=True),
    )
    return [Document(file_id=row.file_id, kind="chunks", pieces=pieces, windowed=True)]
