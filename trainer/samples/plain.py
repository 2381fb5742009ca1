"""Builder of conversations for bases without a chat template (data.turns: plain): a document in place of a chat.

    # .comments metadata      the row's facts, if data.metadata is true; no loss
    # @function add

    def add(a, b):            system and question as they are; no loss
        return a + b          the answer, with loss
    <end>                     with loss

With several questions there is a blank line after each turn. Too long ones are cut as `chat` cuts them.
"""

from __future__ import annotations

from trainer.conversations import Turn, turns_of
from trainer.recipe import Data
from trainer.records import Row
from trainer.samples.chat import answered, first_question
from trainer.samples.facts import titled_block
from trainer.samples.sample import Control, Document, Rejected, Text

PLAIN = "plain"


def build_plain(row: Row, data: Data, *, seed: int) -> list[Document]:
    """Make one document of a conversation. Turns after the last answer are left out: nothing is learned from them.

    Raises:
        Rejected: `no_answer` (the assistant says nothing, or nobody asked).
    """
    turns = answered(turns_of(row.content, row.metadata) or ())
    if first_question(turns) is None:
        raise Rejected("no_answer")
    facts = titled_block(row, data)
    pieces = (
        *([Text(text=facts, facts=True)] if facts else ()),
        *(Text(text=text, supervised=turn.is_answer) for turn, text in zip(turns, _texts(turns), strict=True)),
        Control(role="end", supervised=True),
    )
    return [Document(file_id=row.file_id, kind=PLAIN, pieces=pieces)]


def _texts(turns: tuple[Turn, ...]) -> list[str]:
    """Return the text of each turn. An answer follows its question at once if there is only one question."""
    last = len(turns) - 1
    joined = sum(turn.role != "system" for turn in turns) == 2
    return [
        turn.text if place == last or (joined and turn.role != "system") else turn.text.rstrip("\n") + "\n\n"
        for place, turn in enumerate(turns)
    ]
