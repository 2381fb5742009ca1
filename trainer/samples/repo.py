"""Builder `repo`: one document of a repository's files, each after its imports.

    <|repo_name|>me/project
    <|file_sep|>src/units.py
    …
    <|file_sep|>src/main.py
    …<|endoftext|>

Names and paths have no loss. Each file's text and the separator that ends it have loss. The document has only the files
of one run, which arrived together.
"""

from __future__ import annotations

from collections.abc import Sequence

from trainer.recipe import Data
from trainer.records import Row
from trainer.samples.imports import import_order
from trainer.samples.sample import Control, Document, Rejected, Text


def build_repository(rows: Sequence[Row]) -> Document:
    """Make one document of the rows of a repository. Tokens are attributed to their own rows."""
    ordered = import_order(rows)
    first = ordered[0]
    pieces: list[Text | Control] = [Control(role="repo_name"), Text(text=f"{first.repository}\n")]
    for row in ordered:
        name = f"{row.path}\n" if row.path else "\n"
        pieces += [
            Control(role="file_sep", supervised=row is not first),
            Text(text=name, file_id=row.file_id),
            Text(text=_closed(row.content), supervised=True, file_id=row.file_id),
        ]
    pieces.append(Control(role="end", supervised=True))
    return Document(file_id=first.file_id, kind="repo", pieces=tuple(pieces), windowed=True)


def check_repo(row: Row, data: Data, *, seed: int) -> list[Document]:
    """Check that a row can be part of a repository's document. Returns no sample.

    Raises:
        Rejected: `empty` (only whitespace), `no_repository` (the row has no repository).
    """
    if not row.content.strip():
        raise Rejected("empty")
    if not row.repository:
        raise Rejected("no_repository")
    return []


def _closed(text: str) -> str:
    return text if text.endswith("\n") else f"{text}\n"
