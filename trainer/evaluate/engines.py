"""What an engine is: it answers questions, each with an own seed, in any order. (no torch)"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from trainer.evaluate.prompts import Question
from trainer.recipe import Recipe

Finish = Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How answers are drawn."""

    temperature: float = 0.0
    """0 takes the likeliest token each time."""
    top_p: float = 1.0
    """Only the likeliest tokens that together have this probability are drawn."""
    max_tokens: int = 512
    """Maximum tokens of an answer."""
    seed: int = 42
    top_k: int = 0
    """Only this number of likeliest tokens is drawn. 0: all."""
    repetition_penalty: float = 1.0
    """Divides the score of tokens that occurred before (Keskar et al. 2019, section 4.1). 1: none."""

    def facts(self) -> dict[str, Any]:
        """Return what results depend on. What is off is left out, as it was before it existed."""
        found = asdict(self)
        return {name: value for name, value in found.items() if name not in OPTIONAL or value != OPTIONAL[name]}


OPTIONAL: dict[str, float] = {"top_k": 0, "repetition_penalty": 1.0}


@dataclass(frozen=True, kw_only=True)
class Request:
    """One answer to generate."""

    task_id: str
    sample: int
    """Number of the answer to this task, from 0."""
    question: Question

    def seed(self, sampling: Sampling) -> int:
        """Seed of this answer alone, from 0 to 2 ** 31 - 1: the same in every batch, order and run."""
        text = f"{sampling.seed}:{self.task_id}:{self.sample}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") & 0x7FFFFFFF


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One answer: a line of generations.jsonl."""

    task_id: str
    sample: int
    text: str
    """As generated, without the end token."""
    tokens: int
    """Generated tokens. 0 if the server does not say."""
    seconds: float
    """Wall time: its share of the batch, or the whole call."""
    finish: Finish
    """`stop`: the model ended, or a stop was found. `length`: the limit of tokens was reached."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """What answers."""

    recipe: Recipe
    """Its base is pinned."""
    adapter: Path | None
    """Adapter folder. None: the base alone."""
    url: str | None = None
    """Address of the server, for the engine `openai`."""
    served_name: str | None = None
    """The model's name there."""
    api_key: str | None = None
    batch_size: int = 16
    """Answers in one batch, or calls at once."""


class Engine(Protocol):
    """Answers questions."""

    def answer(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Generation]:
        """Yield an answer for each request, in any order.

        Raises:
            OutOfMemory, UnusableInput
        """
        ...


def _transformers(model: Model, tokenizer: Any, on_note: Callable[[str], None]) -> Engine:
    from trainer.evaluate.transformers_engine import TransformersEngine

    return TransformersEngine.load(model, tokenizer, on_note)


def _openai(model: Model, tokenizer: Any, on_note: Callable[[str], None]) -> Engine:
    from trainer.evaluate.openai_engine import OpenAiEngine

    return OpenAiEngine(model, on_note)


ENGINES: dict[str, Callable[[Model, Any, Callable[[str], None]], Engine]] = {
    "transformers": _transformers,
    "openai": _openai,
}
"""By name: from model, tokenizer, and a function for messages to the user."""
