"""A training example as text: what a builder makes of a row, before any tokenizer has seen it.

Chat       system, user, assistant: the base's own chat template frames the turns
Document   text pieces with control tokens between them, by role; which token plays a role is the model family's
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["fim_prefix", "fim_suffix", "fim_middle", "fim_end", "repo_name", "file_sep", "end"]
"""What a control token is for."""


@dataclass(frozen=True, kw_only=True)
class Message:
    """One turn of a chat. Its text is content: no token in it may act as a control token."""

    role: str
    text: str
    supervised: bool = False
    """Whether the loss is taken on this text and on the token that ends it."""
    facts: str = ""
    """Stands before the text; what data.metadata_off_last_fraction leaves out in the end."""


@dataclass(frozen=True, kw_only=True)
class Text:
    """A stretch of a document's content: no token in it may act as a control token."""

    text: str
    supervised: bool = False
    keeps: Literal["all", "start", "end"] = "all"
    """Which part stays when the sample is too long: context is shortened at the other side, at a line end."""
    file_id: int | None = None
    """The row that its tokens count for, where it is not the document's own."""
    facts: bool = False
    """Whether data.metadata_off_last_fraction leaves it out in the end."""


@dataclass(frozen=True, kw_only=True)
class Control:
    """A control token, by role."""

    role: Role
    supervised: bool = False


@dataclass(frozen=True, kw_only=True)
class Chat:
    """A training example: turns that the base's own chat template will frame."""

    file_id: int
    messages: tuple[Message, ...]
    kind: str
    """What it is counted as: the builder, or the form that the builder chose."""


@dataclass(frozen=True, kw_only=True)
class Document:
    """A training example without a template: text and control tokens as they stand."""

    file_id: int
    pieces: tuple[Text | Control, ...]
    kind: str
    """What it is counted as: the builder, or the form that the builder chose."""
    windowed: bool = False
    """Whether one that is too long becomes several windows (data.window_tokens, data.window_overlap)."""


Sample = Chat | Document


class Rejected(Exception):
    """A row gives no sample; `reason` is the word that is reported and counted."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)
