"""Which experts get the tokens, and the loss that balances them.

    router logits [tokens, experts]  ─ softmax ─▶ P   mean probability of each expert
                                     ─ top k ───▶ f   share of the tokens that each expert gets
    loss = experts · Σ f · P         balanced: top_k      all tokens on the same experts: almost `experts`

This is the loss of Switch Transformers (arXiv 2101.03961, equations 4 to 6) with f for several experts per token, as in
transformers' `load_balancing_loss_func`. It is computed for each layer, and the layers are averaged. transformers'
function adds up f and P over the layers first. Then two layers that collapse to different experts look balanced.

The routers' outputs are raw logits, so there is one softmax here. Only P has a gradient.

Not exact over several packs: f · P of a whole window is not the mean over its packs. A pack counts by its share of the
window's supervised tokens, as in the language model's loss, so the empty pack of a rank counts nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from trainer.model.batch import Batch
from trainer.model.mixture import Mixture, mixture_of
from trainer.recipe import Moe


@dataclass(frozen=True, kw_only=True)
class Routed:
    """What the routers did with one window, on all ranks."""

    auxiliary: float
    """The load balancing loss, without its weight."""
    tokens: int
    counts: list[list[int]]
    """Tokens by layer and expert. Each token counts for top_k experts. Empty if nothing is logged."""


class Routing:
    """The routers of a LossModel, followed through one window after another."""

    def __init__(self, mixture: Mixture, moe: Moe) -> None:
        self.mixture = mixture
        self.weight = moe.auxiliary_loss_weight
        self.counted = moe.log_experts
        self.begin()

    def begin(self) -> None:
        """Begin a window. A window that is repeated begins again."""
        self._sums: list[torch.Tensor] = []

    def observe(self, logits: Sequence[torch.Tensor], batch: Batch) -> torch.Tensor:
        """Count a pack, and return its weighted loss in sum over its supervised tokens.

        Args:
            logits: of each layer, [tokens, experts]
        """
        routed = [_route(layer, self.mixture) for layer in logits]
        auxiliary = torch.stack([loss for loss, _ in routed]).mean() * batch.supervised
        with torch.no_grad():
            counts = torch.stack([count for _, count in routed])
            tokens = torch.tensor(float(batch.tokens), device=counts.device)
            sums = torch.cat([counts.flatten(), tokens[None], auxiliary.detach()[None]]).double()
            self._sums.append(sums if batch.supervised else torch.zeros_like(sums))  # a rank's empty pack has one token
        return self.weight * auxiliary

    def end(self, supervised: int, add: Callable[[torch.Tensor], torch.Tensor]) -> Routed:
        """End a window.

        Args:
            supervised: the window's tokens with loss on all ranks
            add: adds a tensor up over all ranks
        """
        *flat, tokens, auxiliary = add(torch.stack(self._sums).sum(dim=0)).tolist()
        experts = self.mixture.experts
        counts = [[int(n) for n in flat[start : start + experts]] for start in range(0, len(flat), experts)]
        return Routed(auxiliary=auxiliary / supervised, tokens=int(tokens), counts=counts if self.counted else [])


def routing_of(causal: Any, moe: Moe) -> Routing | None:
    """Return what follows a model's routers. None: it has none, or the recipe wants neither the loss nor the counts."""
    mixture = mixture_of(causal.config)
    wanted = moe.auxiliary_loss_weight > 0 or moe.log_experts
    return Routing(mixture, moe) if mixture is not None and wanted else None


def load_balancing_loss(logits: torch.Tensor, mixture: Mixture) -> torch.Tensor:
    """Return the loss of one layer. logits: [tokens, experts]."""
    return _route(logits, mixture)[0]


def _route(logits: torch.Tensor, mixture: Mixture) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a layer's loss, and the number of tokens of each expert."""
    probabilities = torch.softmax(logits.float(), dim=-1)
    chosen = probabilities.detach().topk(mixture.top_k, dim=-1).indices.flatten()
    counts = torch.zeros(mixture.experts, device=logits.device).index_add_(
        0, chosen, torch.ones_like(chosen, dtype=torch.float32)
    )
    share = counts / logits.shape[0]
    return mixture.experts * (share * probabilities.mean(dim=0)).sum(), counts
