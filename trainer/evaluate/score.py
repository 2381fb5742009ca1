"""A model's result on the held-out samples. (no torch)"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Score:
    """A model's result on the held-out samples."""

    loss: float
    """Nats per supervised token."""
    token_accuracy: float
    tokens: int
    """Number of measured tokens with loss."""

    @property
    def perplexity(self) -> float:
        """e to the loss, capped below infinity, which JSON lacks."""
        return math.exp(min(self.loss, 700.0))

    def as_report(self) -> dict[str, float]:
        """Return the form used in report.json and events."""
        return {"loss": self.loss, "perplexity": self.perplexity, "token_accuracy": self.token_accuracy}


@dataclass(frozen=True, kw_only=True)
class SampleScore:
    """A model's result on one held-out sample."""

    loss_sum: float
    """Nats over all supervised tokens."""
    correct: int
    """Supervised tokens that are a top-1 prediction (ties count)."""
    tokens: int
    """Supervised tokens."""


def total(scores: Sequence[SampleScore]) -> Score:
    """Return the score over all supervised tokens of the samples."""
    tokens = sum(score.tokens for score in scores)
    return Score(
        loss=math.fsum(score.loss_sum for score in scores) / tokens,
        token_accuracy=sum(score.correct for score in scores) / tokens,
        tokens=tokens,
    )
