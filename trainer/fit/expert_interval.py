"""What the routers of a mixture did between two evaluations, and how balanced it was. (no torch)"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

DEAD_FRACTION = 0.1
"""An expert is dead if its share of an interval's tokens is below this fraction of a balanced one, top_k / experts."""


@dataclass(kw_only=True)
class ExpertInterval:
    """What the routers did since the last evaluation. Part of a checkpoint."""

    steps: int = 0
    tokens: int = 0
    auxiliary: float = 0.0
    """Sum over the steps."""
    counts: list[list[int]] = field(default_factory=list)
    """Tokens by layer and expert."""

    def add(self, *, tokens: int, auxiliary: float, counts: list[list[int]]) -> None:
        """Add one step."""
        self.steps += 1
        self.tokens += tokens
        self.auxiliary += auxiliary
        before = self.counts or [[0] * len(layer) for layer in counts]
        self.counts = [[a + b for a, b in zip(old, new, strict=True)] for old, new in zip(before, counts, strict=True)]

    def summary(self, top_k: int, *, step: int) -> dict[str, Any]:
        """Return what the event `experts` and the report show."""
        return {
            "step": step,
            "steps": self.steps,
            "tokens": self.tokens,
            "aux_loss": round(self.auxiliary / max(1, self.steps), 6),
            "top_k": top_k,
            "layers": [layer_summary(counts, self.tokens, top_k) for counts in self.counts],
        }


def layer_summary(counts: list[int], tokens: int, top_k: int) -> dict[str, Any]:
    """Return shares, entropy and dead experts of a layer."""
    shares = [count / max(1, tokens) for count in counts]
    bound = DEAD_FRACTION * top_k / len(counts)
    return {
        "shares": [round(share, 4) for share in shares],
        "entropy": round(entropy(counts), 4),
        "dead": [expert for expert, share in enumerate(shares) if share < bound],
    }


def entropy(counts: list[int]) -> float:
    """Return the entropy of a distribution as a share of its maximum: 1 balanced, 0 if one expert gets all."""
    total = sum(counts)
    parts = [count / total for count in counts if count] if total else []
    return -sum(part * math.log(part) for part in parts) / math.log(len(counts)) if len(counts) > 1 else 1.0
