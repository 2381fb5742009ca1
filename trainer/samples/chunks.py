"""Builder `chunks`: the unchanged file. All tokens have loss.

trainer/data/windows.py cuts documents that are longer than a window.
"""

from __future__ import annotations

from trainer.recipe import Data
from trainer.records import Row
from trainer.samples.facts import fact_block
from trainer.samples.sample import Control, Document, Rejected, Text


def build_chunks(row: Row, data: Data, *, seed: int) -> list[Document]:
    """Make one document of the whole file, ending with the end token.

    Raises:
        Rejected: `empty` (only whitespace).
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
