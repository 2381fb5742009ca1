"""Builder `repo`: the files of one repository end to end, each after those it imports.

    <|repo_name|>me/project
    <|file_sep|>src/units.py
    …
    <|file_sep|>src/main.py
    …<|endoftext|>

Names and paths are shown, not learned; every file's text is, and the separator that ends it. Which rows there are is up
to the run: it holds those that came in together.
"""

from __future__ import annotations

from collections.abc import Sequence

from trainer.recipe import Data
from trainer.records import Row
from trainer.samples.imports import import_order
from trainer.samples.sample import Control, Document, Rejected, Text


def build_repository(rows: Sequence[Row]) -> Document:
    """One document of rows that have the same repository; each row's tokens count for that row."""
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
    """No sample: a row makes one together with the others of its repository. Only looks whether it can.

    Raises:
        Rejected: `empty` (nothing but blanks), `no_repository` (the row names none).
    """
    if not row.content.strip():
        raise Rejected("empty")
    if not row.repository:
        raise Rejected("no_repository")
    return []


def _closed(text: str) -> str:
    return text if text.endswith("\n") else f"{text}\n"
