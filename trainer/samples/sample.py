"""A training example as text, before tokenization.

Chat       system, user, assistant: the base's own chat template frames the turns
Document   text with control tokens by role; the model family maps roles to tokens
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["fim_prefix", "fim_suffix", "fim_middle", "fim_end", "repo_name", "file_sep", "end"]
"""Role of a control token."""


@dataclass(frozen=True, kw_only=True)
class Message:
    """One turn of a chat. Its text is content: no token in it may act as a control token."""

    role: str
    text: str
    supervised: bool = False
    """Whether this text and its end token have loss."""
    facts: str = ""
    """Text before the content. data.metadata_off_last_fraction leaves it out in the last steps."""


@dataclass(frozen=True, kw_only=True)
class Text:
    """A piece of a document's content: no token in it may act as a control token."""

    text: str
    supervised: bool = False
    keeps: Literal["all", "start", "end"] = "all"
    """Which end is kept if the sample is too long. The other end is cut at a line boundary."""
    file_id: int | None = None
    """Row to which its tokens are attributed, if not the document's own."""
    facts: bool = False
    """Whether data.metadata_off_last_fraction leaves it out in the last steps."""


@dataclass(frozen=True, kw_only=True)
class Control:
    """A control token, by role."""

    role: Role
    supervised: bool = False


@dataclass(frozen=True, kw_only=True)
class Chat:
    """A training example: turns for the base's chat template."""

    file_id: int
    messages: tuple[Message, ...]
    kind: str
    """What it is counted as: the builder, or the form that the builder chose."""


@dataclass(frozen=True, kw_only=True)
class Document:
    """A training example without a template: text and control tokens."""

    file_id: int
    pieces: tuple[Text | Control, ...]
    kind: str
    """What it is counted as: the builder, or the form that the builder chose."""
    windowed: bool = False
    """Whether to cut a long document into windows (data.window_tokens, data.window_overlap)."""


Sample = Chat | Document


class Rejected(Exception):
    """A row gives no sample. `reason` is reported and counted."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)
