"""A training example as text: what a builder makes of a row, before any tokenizer has seen it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Message:
    """One turn of a chat. Its text is content: no token in it may act as a control token."""

    role: str
    text: str
    supervised: bool = False
    """Whether the loss is taken on this text and on the token that ends it."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A training example: turns that the base's own chat template will frame."""

    file_id: int
    messages: tuple[Message, ...]


class Rejected(Exception):
    """A row gives no sample; `reason` is the word that is reported and counted."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)
