"""Conversations: rows that have turns instead of lines. (no torch)

    metadata = {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}
    content  = the turns as readable text, for people and for limits of length

A row is a conversation if its metadata has such a list, with a role in it (a linter's messages have none). The turns
are what is trained on, not the content. A row of an earlier release whose content is its `prompt` followed by
its `completion` is one as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

MESSAGES = "messages"
"""The key of the metadata that holds the turns."""
Role = Literal["system", "user", "assistant", "tool"]
LINE_ENDS = "\r\n"
ROLES: Mapping[object, Role] = {role: role for role in get_args(Role)}


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One turn of a conversation."""

    role: Role
    text: str
    weight: float = 1.0
    """0 for an answer that must not be learned, as OpenAI's files say it."""

    @property
    def is_answer(self) -> bool:
        """Whether the turn is learned."""
        return self.role == "assistant" and self.weight > 0


def turns_of(content: str, metadata: Mapping[str, Any]) -> tuple[Turn, ...] | None:
    """Return the turns of a row, or None if it is not a conversation.

    A turn of another form (an unknown role, no text) is left out.
    """
    messages = metadata.get(MESSAGES)
    if isinstance(messages, list) and any(isinstance(message, Mapping) and "role" in message for message in messages):
        return tuple(turn for turn in map(_turn, messages) if turn is not None)
    prompt, completion = metadata.get("prompt"), metadata.get("completion")
    if isinstance(prompt, str) and isinstance(completion, str) and _is_joined(content, prompt, completion):
        return Turn(role="user", text=prompt), Turn(role="assistant", text=completion)
    return None


def as_messages(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """Return turns as they are stored in a row's metadata."""
    plain = ({"role": turn.role, "content": turn.text} for turn in turns)
    return [message if turn.weight else {**message, "weight": 0} for message, turn in zip(plain, turns, strict=True)]


def weight_of(message: Mapping[str, Any]) -> float:
    """Return the weight of a message: 0 if it says so, else 1."""
    weight = message.get("weight")
    return 0.0 if isinstance(weight, int | float) and weight == 0 else 1.0


def readable(turns: Iterable[Turn]) -> str:
    """Return turns as text for people, each after its role."""
    return "\n\n".join(f"{turn.role}:\n{turn.text.strip(LINE_ENDS)}" for turn in turns) + "\n"


def _turn(message: object) -> Turn | None:
    if not isinstance(message, Mapping):
        return None
    named, text = message.get("role"), message.get("content")
    role = ROLES.get(named.strip().lower()) if isinstance(named, str) else None
    if role is None or not isinstance(text, str) or not text.strip():
        return None
    return Turn(role=role, text=text, weight=weight_of(message))


def _is_joined(content: str, prompt: str, completion: str) -> bool:
    return content.startswith(prompt) and content.endswith(completion) and len(content) - len(prompt + completion) < 2
