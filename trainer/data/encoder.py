"""Encodes a sample's text to ids, so that content never produces control tokens.

A file may contain `<|im_end|>` or `<|fim_prefix|>`. The tokenizer would encode these as control tokens, and even
split_special_tokens=True only prevents that for special tokens. So content is encoded by a copy of the tokenizer
without added tokens. The ids are then joined with those of the rendered chat template, or with the control tokens of
the model's family.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from jinja2 import TemplateError
from tokenizers import Encoding, Tokenizer

from trainer.errors import UnusableInput
from trainer.model.families import family_of
from trainer.samples.sample import Chat, Control, Document, Role, Sample, Text

IGNORED = -100
"""Label of positions without loss."""

MARK = " \n\ue000{index}\ue001\n "
"""Placeholder for message `index` in the rendered template. No template contains these private-use characters."""


@dataclass(frozen=True, kw_only=True)
class TokenSample:
    """A sample as ids."""

    file_id: int
    """File id of the sample's row, or of the first one of several."""
    ids: torch.Tensor
    """int32 [tokens]"""
    labels: torch.Tensor
    """int32 [tokens]: the id for tokens with loss (not shifted), else IGNORED."""
    supervised: int
    """Number of tokens with loss."""
    kind: str = "sample"
    """Kind of sample, for statistics."""
    shares: tuple[tuple[int, int], ...] = ()
    """(file_id, tokens) of each source row. They add up to all tokens. Default: only the sample's own row."""
    bare: TokenSample | None = None
    """The sample without its facts, for the last part of the training."""
    weight: float = 1.0
    """Factor of its loss. Negative: the sample is made less likely."""

    def __post_init__(self) -> None:
        if not self.shares:
            object.__setattr__(self, "shares", ((self.file_id, len(self.ids)),))

    @property
    def tokens(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, kw_only=True)
class Part:
    """A run of ids of one type: template, control tokens or content."""

    ids: Sequence[int]
    file_id: int
    """Row to which the tokens are attributed."""
    supervised: bool = False
    keeps: Literal["all", "start", "end"] = "all"
    facts: bool = False
    """Whether the last part of the training leaves it out."""
    content: tuple[str, Encoding] | None = None
    """Text and encoding of content."""

    @cached_property
    def line_ends(self) -> list[int]:
        """Token counts up to each line end, ascending. The part may be cut there."""
        if self.content is None:
            return []
        text, encoding = self.content
        return [number for number, (_, stop) in enumerate(encoding.offsets, 1) if stop and text[stop - 1] == "\n"]


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """An encoded sample of any length."""

    kind: str
    parts: list[Part]
    windowed: bool

    @property
    def tokens(self) -> int:
        return sum(len(part.ids) for part in self.parts)


class SampleEncoder:
    """Encodes samples for one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.plain = _without_added_tokens(tokenizer.backend_tokenizer)
        self.added = frozenset(tokenizer.added_tokens_decoder)
        self.end_id: int = tokenizer.eos_token_id
        vocabulary: dict[str, int] = tokenizer.get_vocab()
        self.family = family_of(vocabulary, end_token=tokenizer.eos_token)
        self.roles: dict[Role, list[int]] = {
            role: [] if token is None else [vocabulary[token]] for role, token in self.family.tokens.items()
        }
        self.opening = [token for token in tokenizer.encode("") if token == tokenizer.bos_token_id]
        """The tokenizer's beginning-of-text token, if it adds one."""
        self.frames: dict[tuple[str, ...], list[list[int]]] = {}

    def check(self, needs: Mapping[str, Iterable[str]]) -> None:
        """Check that this tokenizer has what the builders need.

        Args:
            needs: builder → control roles, and `chat` for a chat template

        Raises:
            UnusableInput: something is missing. Names builder, tokenizer and missing tokens.
        """
        for builder, roles in needs.items():
            if "chat" in roles and not self.tokenizer.chat_template:
                raise UnusableInput(
                    f"data.builders: {builder} needs a chat template, but {self.tokenizer.name_or_path} has none. "
                    "Use an instruct model, document builders (chunks, items, fim), or, for conversations, "
                    "data.turns: plain"
                )
            if missing := [role for role in roles if role != "chat" and role not in self.roles]:
                raise UnusableInput(
                    f"data.builders: {builder} needs tokens for {', '.join(missing)}, but the tokenizer of "
                    f"{self.tokenizer.name_or_path} has none that a known family uses (trainer/model/families.py). "
                    "Remove the builder, or use a base that was trained with these tokens"
                )

    def encode(self, samples: Sequence[Sample]) -> list[TokenSample]:
        """Encode samples, in order and without cutting."""
        return [joined(encoded.kind, encoded.parts) for encoded in self.encode_parts(samples)]

    def encode_parts(self, samples: Sequence[Sample]) -> list[Encoded]:
        """Encode samples in parts, in order and of any length."""
        texts = [text for sample in samples for text in _texts(sample)]
        encodings = iter(self.plain.encode_batch(texts, add_special_tokens=False))
        encoded = []
        for sample in samples:
            contents = [next(encodings) for _ in _texts(sample)]
            parts = self._chat(sample, contents) if isinstance(sample, Chat) else self._document(sample, contents)
            windowed = isinstance(sample, Document) and sample.windowed
            encoded.append(Encoded(kind=sample.kind, parts=parts, windowed=windowed))
        return encoded

    def _chat(self, sample: Chat, contents: list[Encoding]) -> list[Part]:
        frame = self._frame(tuple(message.role for message in sample.messages))
        parts = [Part(ids=frame[0], file_id=sample.file_id)]
        left = iter(contents)
        for index, message in enumerate(sample.messages):
            after = frame[index + 1]
            ends = 1 if message.supervised and after[:1] == [self.end_id] else 0
            assert ends or not message.supervised, f"the template does not end {message.role} with the end token"
            if message.facts:
                parts.append(self._content(sample.file_id, message.facts, next(left), facts=True))
            parts += [
                self._content(sample.file_id, message.text, next(left), supervised=message.supervised),
                Part(ids=after[:ends], file_id=sample.file_id, supervised=message.supervised),
                Part(ids=after[ends:], file_id=sample.file_id),
            ]
        return parts

    def _document(self, sample: Document, contents: list[Encoding]) -> list[Part]:
        left = iter(contents)
        groups: list[tuple[Role | None, list[Part]]] = [(None, [Part(ids=self.opening, file_id=sample.file_id)])]
        for piece in sample.pieces:
            if isinstance(piece, Control):
                ids = self._role(piece.role, sample)
                part = Part(ids=ids, file_id=sample.file_id, supervised=piece.supervised)
                groups.append((piece.role, [part]))
            else:
                file_id = sample.file_id if piece.file_id is None else piece.file_id
                content = self._content(
                    file_id,
                    piece.text,
                    next(left),
                    supervised=piece.supervised,
                    keeps=piece.keeps,
                    facts=piece.facts,
                )
                groups[-1][1].append(content)
        return [part for _, group in self._in_order(groups) for part in group]

    def _content(
        self,
        file_id: int,
        text: str,
        encoding: Encoding,
        *,
        supervised: bool = False,
        keeps: Literal["all", "start", "end"] = "all",
        facts: bool = False,
    ) -> Part:
        ids = encoding.ids
        assert self.added.isdisjoint(ids), f"file {file_id}: a control token inside the content"
        content = (text, encoding)
        return Part(ids=ids, file_id=file_id, supervised=supervised, keeps=keeps, facts=facts, content=content)

    def _role(self, role: Role, sample: Document) -> list[int]:
        if role not in self.roles:
            self.check({sample.kind: [role]})
        return self.roles[role]

    def _in_order(self, groups: list[tuple[Role | None, list[Part]]]) -> list[tuple[Role | None, list[Part]]]:
        """Reorder the parts of a gap for the model family. Builders give prefix, suffix, middle."""
        order = self.family.fim_order
        places = [place for place, (role, _) in enumerate(groups) if role in order]
        ordered = list(groups)
        for place, group in zip(
            places, sorted((groups[p] for p in places), key=lambda g: order.index(g[0])), strict=True
        ):
            ordered[place] = group
        return ordered

    def shows(self, chat: Chat) -> bool:
        """Whether the chat template accepts the chat's roles in this order, and marks the end of what is supervised.

        Templates differ: some have no system role, or want user and assistant in turn.
        """
        try:
            frame = self._frame(tuple(message.role for message in chat.messages))
        except (UnusableInput, TemplateError):
            return False
        ends = zip(chat.messages, frame[1:], strict=True)
        return all(after[:1] == [self.end_id] for message, after in ends if message.supervised)

    def _frame(self, roles: tuple[str, ...]) -> list[list[int]]:
        """Return the template's ids before, between and after the messages of these roles."""
        if roles not in self.frames:
            self.check({"a chat": ["chat"]})
            pieces = self._render(roles)
            self.frames[roles] = [self.tokenizer.encode(p, add_special_tokens=False) if p else [] for p in pieces]
        return self.frames[roles]

    def _render(self, roles: tuple[str, ...]) -> list[str]:
        """Render the template and split it at the messages. Whitespace around the placeholders reveals stripping.

        Raises:
            UnusableInput: the template changes or moves the text of a message.
        """
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


def joined(kind: str, parts: Sequence[Part], *, unsupervised: int = 0, with_bare: bool = False) -> TokenSample:
    """Join parts into one sample.

    Args:
        unsupervised: number of tokens at the start without loss, regardless of their parts
        with_bare: also make the sample without its facts, if it has any
    """
    ids = [token for part in parts for token in part.ids]
    labels = [token if part.supervised else IGNORED for part in parts for token in part.ids]
    unsupervised = max(unsupervised, 1)  # no token predicts the first one
    labels[:unsupervised] = [IGNORED] * len(labels[:unsupervised])
    shares: dict[int, int] = {}
    for part in parts:
        if part.ids:
            shares[part.file_id] = shares.get(part.file_id, 0) + len(part.ids)
    told = [part for part in parts if not part.facts] if with_bare else parts
    return TokenSample(
        file_id=next(iter(shares)),
        ids=torch.tensor(ids, dtype=torch.int32),
        labels=torch.tensor(labels, dtype=torch.int32),
        supervised=len(labels) - labels.count(IGNORED),
        kind=kind,
        shares=tuple(shares.items()),
        bare=joined(kind, told) if len(told) < len(parts) else None,
    )


UNUSED_TOKENS = ("<|endoftext|>", "<|finetune_right_pad_id|>", "<|reserved_special_token_0|>", "<unk>")
"""Control tokens that occur in no text, by family: Qwen, Llama 3.1, Llama 3, Mixtral."""


def pad_id(tokenizer: Any) -> int:
    """Return the padding id: `<|endoftext|>` if the tokenizer has it, else its own, else a token of no text.

    It is never the end of a turn. Only generation pads; training has no padding.

    Raises:
        UnusableInput: there is no such id.
    """
    vocabulary = tokenizer.get_vocab()
    own = tokenizer.pad_token_id
    first, *others = (vocabulary.get(token) for token in UNUSED_TOKENS)
    found = next((n for n in (first, own, *others) if n is not None and n != tokenizer.eos_token_id), None)
    if found is None:
        raise UnusableInput(f"{tokenizer.name_or_path} has no padding token except the one that ends a turn")
    return int(found)


def _texts(sample: Sample) -> list[str]:
    """Return the sample's content texts, in encoding order."""
    if isinstance(sample, Chat):
        turns = [[message.facts, message.text] if message.facts else [message.text] for message in sample.messages]
        return [text for turn in turns for text in turn]
    return [piece.text for piece in sample.pieces if isinstance(piece, Text)]


def _without_added_tokens(backend: Tokenizer) -> Tokenizer:
    """Copy a tokenizer without its added tokens, so that they are encoded as plain text."""
    description = json.loads(backend.to_str())
    description |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    return Tokenizer.from_str(json.dumps(description))
