"""Recognises conversations in records: messages, ShareGPT's turns, Alpaca's instructions, prompts with answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from trainer.conversations import Role, Turn, weight_of

LISTS = ("messages", "conversations", "conversation")
"""Columns that hold a list of turns."""
PAIRS = (
    ("prompt", "completion"), ("prompt", "response"), ("instruction", "output"), ("instruction", "response"),
    ("instruction", "completion"), ("question", "answer"), ("query", "response"), ("query", "answer"),
    ("question", "response"), ("problem", "solution"),
)  # fmt: skip
"""Columns that hold a question and its answer."""
INPUT, HISTORY = "input", "history"
"""Columns beside a pair: what the instruction is about, and the earlier questions with their answers."""
SYSTEMS = ("system", "system_prompt")
"""Columns beside the turns: the system's turn."""
ROLES: Mapping[str, Role] = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "model": "assistant", "chatgpt": "assistant",
    "function_call": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "function_response": "tool", "ipython": "tool",
}  # fmt: skip
COLUMNS = (*LISTS, *dict.fromkeys(name for pair in PAIRS for name in pair), INPUT, HISTORY, *SYSTEMS)


class BadTurns(Exception):
    """A record looks like a conversation, but one of its turns cannot be used. The text says which and why."""


def turns_in(record: Mapping[str, Any]) -> list[Turn] | None:
    """Return the turns of a record, or None if it is not a conversation.

    Raises:
        BadTurns: a turn has an unknown role or no text, or the assistant says nothing.
    """
    turns = _listed(record) or _paired(record)
    if turns is None:
        return None
    if not any(turn.is_answer for turn in turns):
        raise BadTurns("conversation without an answer")
    system = next((text for text in map(record.get, SYSTEMS) if isinstance(text, str) and text.strip()), None)
    if system is not None and turns[0].role != "system":
        turns = [Turn(role="system", text=system), *turns]
    return turns


def _listed(record: Mapping[str, Any]) -> list[Turn] | None:
    for name in LISTS:
        messages = _unwrapped(record.get(name))
        if isinstance(messages, list) and messages:
            return [_turn(message) for message in messages]
    prompt, completion = record.get("prompt"), record.get("completion")
    if isinstance(prompt, list) and isinstance(completion, list) and prompt and completion:
        return [_turn(message) for message in (*prompt, *completion)]
    return None


def _paired(record: Mapping[str, Any]) -> list[Turn] | None:
    for asked, answered in PAIRS:
        question, answer = record.get(asked), record.get(answered)
        if isinstance(question, str) and isinstance(answer, str):
            about = record.get(INPUT) if asked == "instruction" else None
            text = f"{question}\n\n{about}" if isinstance(about, str) and about.strip() else question
            if not text.strip() or not answer.strip():
                raise BadTurns("conversation with an empty question or answer")
            earlier = _earlier(record.get(HISTORY))
            return [*earlier, Turn(role="user", text=text), Turn(role="assistant", text=answer)]
    return None


def _unwrapped(messages: object) -> object:
    """Return a list that a table holds as JSON text."""
    if isinstance(messages, str) and messages.lstrip().startswith("["):
        with suppress(ValueError, RecursionError):
            return json.loads(messages)
    return messages


def _earlier(history: object) -> list[Turn]:
    """Return Alpaca's earlier questions and answers, a list of pairs."""
    turns = []
    for pair in history if isinstance(history, list) else ():
        if not (isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise BadTurns("history is not a list of questions and answers")
        turns += [Turn(role="user", text=pair[0]), Turn(role="assistant", text=pair[1])]
    if not all(turn.text.strip() for turn in turns):
        raise BadTurns("history has an empty question or answer")
    return turns


def _turn(message: object) -> Turn:
    if not isinstance(message, Mapping):
        raise BadTurns("turn is not an object")
    named = message.get("from") if message.get("role") is None else message["role"]  # in Parquet, all have all keys
    role = ROLES.get(named.strip().lower()) if isinstance(named, str) else None
    if role is None:
        raise BadTurns(f"turn has the unknown role {str(named)[:40]!r}")
    text = _text(message.get("value") if message.get("content") is None else message["content"])
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list | tuple):
        raise BadTurns("turn has tool calls that are not a list")
    if message.get("function_call"):  # OpenAI's earlier form
        calls = [*calls, message["function_call"]]
    calls = [_call(call) for call in calls]
    text = "\n".join(part for part in (text, *calls) if part)
    if not text.strip():
        raise BadTurns("turn without text")
    return Turn(role=role, text=text, weight=weight_of(message))


def _text(content: object) -> str:
    """Return the text of a turn. It may be a list of parts, of which only text can be trained on."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence) and not isinstance(content, bytes):
        parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        if all(isinstance(part, str) for part in parts):
            return "".join(str(part) for part in parts)
    raise BadTurns("turn has something that is not text")


def _call(call: object) -> str:
    """Return a call of a tool as text, in the form that Qwen's template writes."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise BadTurns("turn has a tool call without a name")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        with suppress(ValueError):  # some models write arguments that are not JSON
            arguments = json.loads(arguments)
    called = json.dumps({"name": function["name"], "arguments": arguments}, ensure_ascii=False, default=str)
    return f"<tool_call>\n{called}\n</tool_call>"
