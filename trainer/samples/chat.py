"""Builder `chat`: a conversation in the base's chat template, with loss on every turn of the assistant.

It gets every row that is a conversation (trainer/conversations.py), whatever data.builders says, and no other row.
With `data.turns: plain`, the builder in plain.py gets them.
"""

from __future__ import annotations

from dataclasses import replace

from trainer.conversations import MESSAGES, Turn, as_messages, turns_of
from trainer.recipe import Data
from trainer.records import Row
from trainer.samples.facts import titled_block
from trainer.samples.sample import Chat, Message, Rejected


def build_chat(row: Row, data: Data, *, seed: int) -> list[Chat]:
    """Make one chat of a conversation. Turns after the last answer are left out: nothing is learned from them.

    Raises:
        Rejected: `no_answer` (the assistant says nothing, or nobody asked).
    """
    turns = answered(turns_of(row.content, row.metadata) or ())
    facts, asked = titled_block(row, data), first_question(turns)
    if asked is None:
        raise Rejected("no_answer")
    messages = tuple(
        Message(
            role=turn.role, text=turn.text, supervised=turn.is_answer, facts=facts if place == asked else "",
        )
        for place, turn in enumerate(turns)
    )  # fmt: skip
    return [Chat(file_id=row.file_id, kind="chat", messages=messages)]


def chat_halves(row: Row) -> tuple[Row, Row] | None:
    """Cut a conversation before the question that is nearest to its middle. Both parts keep the system's turn.
    The facts of the metadata stay with the first one.

    Returns:
        The two parts, or None if it has only one question.
    """
    turns = answered(turns_of(row.content, row.metadata) or ())
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
    first, second = ({MESSAGES: as_messages((*system, *part))} for part in (talk[:cut], talk[cut:]))
    return replace(row, metadata={**row.metadata, **first}), replace(row, metadata=second)


def first_question(turns: tuple[Turn, ...]) -> int | None:
    """Return the place of the first turn that asks, or None."""
    return next((place for place, turn in enumerate(turns) if turn.role in ("user", "tool")), None)


def answered(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """Return the turns up to the last one that is learned."""
    last = max((place for place, turn in enumerate(turns) if turn.is_answer), default=-1)
    return turns[: last + 1]
