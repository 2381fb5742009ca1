"""Draws tokens so that an answer depends on its own seed alone, whatever else is in its batch.

torch's own sampling draws one stream of numbers for a whole batch, so an answer would change with its neighbours.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import LogitsProcessor, StoppingCriteria, TextStreamer

from trainer.evaluate.engines import Sampling

LOOK_EVERY = 8
"""Tokens between two looks for a stop in the text: decoding each time would cost more than the tokens saved."""


class OwnDraw(LogitsProcessor):
    """Leaves one token in each row: the one that the row's next random number falls on.

    probability   | a: 0.6       | b: 0.3 | c |      sorted, cut at top_p and top_k
    number        0 ......x................... 1     x falls on a
    """

    def __init__(self, seeds: Sequence[int], sampling: Sampling) -> None:
        self._draws = [random.Random(seed) for seed in seeds]
        self._sampling = sampling

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores: [rows, words]. Returns them with all but one at minus infinity."""
        likely, order = (
            (scores.double() / self._sampling.temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
        )
        before = likely.cumsum(-1) - likely
        likely = likely.where(before < self._sampling.top_p, 0.0)
        if self._sampling.top_k:
            likely[:, self._sampling.top_k :] = 0.0
        numbers = torch.tensor([draw.random() for draw in self._draws], dtype=torch.float64, device=scores.device)
        reached = likely.cumsum(-1)
        place = torch.searchsorted(reached, (numbers * reached[:, -1])[:, None], right=True)
        last = (likely > 0).sum(-1, keepdim=True) - 1  # rounding may lead past the last likely token
        chosen = order.gather(-1, place.minimum(last))
        return torch.full_like(scores, -torch.inf).scatter(-1, chosen, 0.0)


class StopAt(StoppingCriteria):
    """Ends a row whose text holds one of its stops."""

    def __init__(self, tokenizer: Any, prompt_tokens: int, is_whole: Sequence[Callable[[str], bool]]) -> None:
        self._tokenizer, self._prompt_tokens, self._is_whole = tokenizer, prompt_tokens, is_whole

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Return whether each row has ended: bool [rows]."""
        done = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        if (input_ids.shape[1] - self._prompt_tokens) % LOOK_EVERY:
            return done
        texts = self._tokenizer.batch_decode(input_ids[:, self._prompt_tokens :], skip_special_tokens=True)
        for row, (text, is_whole) in enumerate(zip(texts, self._is_whole, strict=True)):
            done[row] = is_whole(text)
        return done


class StopWhen(StoppingCriteria):
    """Ends all rows when a function says so."""

    def __init__(self, stopped: Callable[[], bool]) -> None:
        self._stopped = stopped

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Return the same for each row: bool [rows]."""
        return torch.full((len(input_ids),), self._stopped(), dtype=torch.bool, device=input_ids.device)


class TextAsItComes(TextStreamer):
    """Gives the text of one row to a function, in parts that end between words."""

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        self._on_text = on_text

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Called by transformers for each part, which may be empty."""
        if text:
            self._on_text(text)
