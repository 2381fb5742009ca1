"""An answer to a held-out prompt."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A held-out prompt and a model's answer, for people to read."""

    step: int
    """The step whose weights answered. 0: before the training."""
    file_id: int
    prompt: str
    expected: str
    answer: str
