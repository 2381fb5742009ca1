"""Builder `commits`: chats about changes. The row holds the file after the change; `metadata` holds the rest.

commit   message and the file before  →  the file after
review   the diff                     →  the message
"""

from __future__ import annotations

import difflib
import random

from trainer.recipe import Data
from trainer.records import Row
from trainer.samples.instruction import SYSTEM, fence_for
from trainer.samples.sample import Chat, Message, Rejected
from trainer.samples.spoken import spoken

CONTEXT_LINES = 3
"""Context lines of a computed diff."""


def build_commits(row: Row, data: Data, *, seed: int) -> list[Chat]:
    """Make one chat of a change. If both forms are possible, half are commits and half are reviews.

    metadata: `message`; `before` (the file's text before the change), `diff` (unified), or both.

    Raises:
        Rejected: `empty`, `no_commit` (no message, or neither `before` nor `diff`), `unchanged`.
    """
    if not row.content.strip():
        raise Rejected("empty")
    message, before, diff = (_text(row, key) for key in ("message", "before", "diff"))
    if not message.strip() or not (before or diff):
        raise Rejected("no_commit")
    if before == row.content:
        raise Rejected("unchanged")
    as_commit = bool(before) and random.Random(f"{seed}:commits:{row.file_id}").random() < 0.5
    return [_commit(row, message, before) if as_commit else _review(row, message, diff or _difference(row, before))]


def _commit(row: Row, message: str, before: str) -> Chat:
    fence = fence_for(before + row.content)
    asked = f"Make this change to the following {spoken(row.language)} code:\n\n{message.strip()}"
    return _chat(
        row,
        "commit",
        f"{asked}\n\n{fence}{row.language.lower()}\n{_closed(before)}{fence}",
        f"{fence}{row.language.lower()}\n{_closed(row.content)}{fence}",
    )


def _review(row: Row, message: str, diff: str) -> Chat:
    fence = fence_for(diff)
    asked = f"Write the commit message of this change to {spoken(row.language)} code:"
    return _chat(row, "review", f"{asked}\n\n{fence}diff\n{_closed(diff)}{fence}", message.strip())


def _difference(row: Row, before: str) -> str:
    name = row.path or "file"
    lines = difflib.unified_diff(
        before.splitlines(keepends=True),
        row.content.splitlines(keepends=True),
        f"a/{name}",
        f"b/{name}",
        n=CONTEXT_LINES,
    )
    return "".join(_closed(line) for line in lines)


def _chat(row: Row, kind: str, asked: str, answer: str) -> Chat:
    messages = (
        Message(role="system", text=SYSTEM),
        Message(role="user", text=asked),
        Message(role="assistant", text=answer, supervised=True),
    )
    return Chat(file_id=row.file_id, kind=kind, messages=messages)


def _closed(text: str) -> str:
    return text if text.endswith("\n") else f"{text}\n"


def _text(row: Row, key: str) -> str:
    """Return a valid text of the row's metadata, or an empty one."""
    value = row.metadata.get(key)
    return value.encode(errors="replace").decode() if isinstance(value, str) else ""
