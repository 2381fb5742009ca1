"""Builder `chat`: a conversation in the base's chat template, with loss on every turn of the assistant.

It gets every row that is a conversation (trainer/conversations.py), whatever data.builders says, and no other row.
"""

from __future__ import annotations

from dataclasses import replace

from trainer.conversations import MESSAGES, Turn, as_messages, turns_of
from trainer.recipe import Data
from trainer.records import Row
from trainer.samples.sample import Chat, Message, Rejected


def build_chat(row: Row, data: Data, *, seed: int) -> list[Chat]:
    """Make one chat of a conversation. Turns after the last answer are left out: nothing is learned from them.

    Raises:
        Rejected: `no_answer` (the assistant says nothing, or nobody asked).
    """
    turns = _answered(turns_of(row.content, row.metadata) or ())
    if not any(turn.role in ("user", "tool") for turn in turns):
        raise Rejected("no_answer")
    messages = tuple(Message(role=turn.role, text=turn.text, supervised=turn.is_answer) for turn in turns)
    return [Chat(file_id=row.file_id, kind="chat", messages=messages)]


def chat_halves(row: Row) -> tuple[Row, Row] | None:
    """Cut a conversation before the question that is nearest to its middle. Both parts keep the system's turn.

    Returns:
        The two parts, or None if it has only one question.
    """
    turns = _answered(turns_of(row.content, row.metadata) or ())
    system = turns[:1] if turns and turns[0].role == "system" else ()
    talk = turns[len(system) :]
    cuts = [
        place
        for place in range(1, len(talk))
        if talk[place].role == "user" and any(turn.is_answer for turn in talk[:place])
    ]
    if not cuts:
        return None
    sizes = [len(turn.text) for turn in talk]
    cut = min(cuts, key=lambda place: abs(sum(sizes[:place]) - sum(sizes[place:])))
    first, second = (
        replace(row, metadata={MESSAGES: as_messages((*system, *part))}) for part in (talk[:cut], talk[cut:])
    )
    return first, second


def _answered(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """Return the turns up to the last one that is learned."""
    last = max((place for place, turn in enumerate(turns) if turn.is_answer), default=-1)
    return turns[: last + 1]
