"""A model's result on the held-out samples. (no torch)"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Score:
    """A model's result on the held-out samples."""

    loss: float
    """Nats per supervised token."""
    token_accuracy: float
    tokens: int
    """Supervised tokens that were measured."""

    @property
    def perplexity(self) -> float:
        """e to the loss; held below infinity, which JSON does not have."""
        return math.exp(min(self.loss, 700.0))

    def as_report(self) -> dict[str, float]:
        """As report.json and the events have it."""
        return {"loss": self.loss, "perplexity": self.perplexity, "token_accuracy": self.token_accuracy}
