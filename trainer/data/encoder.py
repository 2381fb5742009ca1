"""From a sample's text to ids: the template's control tokens and the content's text never meet.

A file may well contain `<|im_end|>` or `<|fim_prefix|>`. The tokenizer would read those as control tokens (even with
split_special_tokens=True, which spares only the special ones), so content is encoded by a copy of the tokenizer that
knows no added token at all, and the ids are joined.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer

from trainer.errors import UnusableInput
from trainer.samples.sample import Sample

IGNORED = -100
"""Label of a position without loss."""

MARK = " \n\ue000{index}\ue001\n "
"""Stands for message `index` while the template is rendered; private-use characters, so no template holds it."""


@dataclass(frozen=True, kw_only=True)
class TokenSample:
    """A sample as ids."""

    file_id: int
    ids: torch.Tensor
    """int32 [tokens]"""
    labels: torch.Tensor
    """int32 [tokens]: the id itself where there is loss (not yet shifted), IGNORED elsewhere."""
    supervised: int
    """How many positions are predicted with loss."""

    @property
    def tokens(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Part:
    """A stretch of ids that is all template or all content."""

    ids: list[int]
    supervised: bool


class ChatEncoder:
    """Encodes samples for one tokenizer.

    Raises:
        UnusableInput: the tokenizer has no chat template, none of its own ids for padding, or a template that
            changes the text of a message.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not tokenizer.chat_template:
            raise UnusableInput(f"{tokenizer.name_or_path} has no chat template, which the sample builder needs")
        self.tokenizer = tokenizer
        self.plain = _without_added_tokens(tokenizer.backend_tokenizer)
        self.added = frozenset(tokenizer.added_tokens_decoder)
        self.end_id: int = tokenizer.eos_token_id
        self.frames: dict[tuple[str, ...], list[list[int]]] = {}

    def encode(self, samples: Sequence[Sample]) -> list[TokenSample]:
        """Samples as ids, in order."""
        texts = [message.text for sample in samples for message in sample.messages]
        encodings = iter(self.plain.encode_batch(texts, add_special_tokens=False))
        encoded = []
        for sample in samples:
            contents = [next(encodings).ids for _ in sample.messages]
            encoded.append(self._join(sample, contents))
        return encoded

    def _join(self, sample: Sample, contents: list[list[int]]) -> TokenSample:
        frame = self._frame(tuple(message.role for message in sample.messages))
        parts = [Part(frame[0], False)]
        for index, message in enumerate(sample.messages):
            content, after = contents[index], frame[index + 1]
            assert self.added.isdisjoint(content), f"file {sample.file_id}: a control token inside the content"
            ends = 1 if message.supervised and after[:1] == [self.end_id] else 0
            assert ends or not message.supervised, f"the template does not end {message.role} with the end token"
            parts += [
                Part(content, message.supervised),
                Part(after[:ends], message.supervised),
                Part(after[ends:], False),
            ]
        return _token_sample(sample.file_id, parts)

    def _frame(self, roles: tuple[str, ...]) -> list[list[int]]:
        """The template's ids before, between and after the messages of these roles."""
        if roles not in self.frames:
            pieces = self._render(roles)
            self.frames[roles] = [self.tokenizer.encode(p, add_special_tokens=False) if p else [] for p in pieces]
        return self.frames[roles]

    def _render(self, roles: tuple[str, ...]) -> list[str]:
        """The rendered template, cut at the messages: blanks around the marks show whether it leaves text alone."""
        marks = [MARK.format(index=index) for index in range(len(roles))]
        messages = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
        rest = self.tokenizer.apply_chat_template(messages, tokenize=False)
        pieces = []
        for mark in marks:
            before, found, rest = rest.partition(mark)
            if not found:
                raise UnusableInput(
                    f"the chat template of {self.tokenizer.name_or_path} does not show the messages {', '.join(roles)}"
                    " in order and unchanged"
                )
            pieces.append(before)
        return [*pieces, rest]


def pad_id(tokenizer: Any) -> int:
    """Id to pad with: `<|endoftext|>` where the tokenizer has it, else its own. Never the id that ends a turn.

    Raises:
        UnusableInput: there is no such id.
    """
    vocabulary = tokenizer.get_vocab()
    found = vocabulary.get("<|endoftext|>", tokenizer.pad_token_id)
    if found is None or found == tokenizer.eos_token_id:
        raise UnusableInput(f"{tokenizer.name_or_path} has no token to pad with other than the one that ends a turn")
    return int(found)


def _without_added_tokens(backend: Tokenizer) -> Tokenizer:
    """A copy of a tokenizer that reads every added token as plain text."""
    description = json.loads(backend.to_str())
    description |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    return Tokenizer.from_str(json.dumps(description))


def _token_sample(file_id: int, parts: list[Part]) -> TokenSample:
    ids = [token for part in parts for token in part.ids]
    labels = [token if part.supervised else IGNORED for part in parts for token in part.ids]
    return TokenSample(
        file_id=file_id,
        ids=torch.tensor(ids, dtype=torch.int32),
        labels=torch.tensor(labels, dtype=torch.int32),
        supervised=sum(label != IGNORED for label in labels[1:]),
    )
