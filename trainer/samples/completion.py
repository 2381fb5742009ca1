"""Builder `completion`: a prompt without loss, and what continues it with loss. No template.

metadata = {"prompt_chars": 24}      content = prompt + completion
"""

from __future__ import annotations

from trainer.recipe import Data
from trainer.records import Row
from trainer.samples.sample import Control, Document, Rejected, Text

PROMPT_CHARS = "prompt_chars"
"""The key of the metadata that says where the prompt ends."""


def build_completion(row: Row, data: Data, *, seed: int) -> list[Document]:
    """Make one document, which ends with the end token.

    Raises:
        Rejected: `no_prompt` (the metadata do not say where the prompt ends), `no_answer` (nothing follows it).
    """
    end = row.metadata.get(PROMPT_CHARS)
    if not isinstance(end, int) or isinstance(end, bool) or end < 1:
        raise Rejected("no_prompt")
    if end >= len(row.content):
        raise Rejected("no_answer")
    pieces = (
        Text(text=row.content[:end]),
        Text(text=row.content[end:], supervised=True),
        Control(role="end", supervised=True),
    )
    return [Document(file_id=row.file_id, kind="completion", pieces=pieces)]
