"""Follows the experts of a mixture through a fit: the load balancing loss of each step, and each interval's shares."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from accelerate.utils import reduce

from trainer.fit.context import FitContext
from trainer.fit.expert_interval import ExpertInterval
from trainer.fit.progress import Progress


class ExpertLog:
    """Follows the routers of one fit. Does nothing for a base without experts."""

    def __init__(self, context: FitContext) -> None:
        self._accelerator, self._events, self._trackers = context.accelerator, context.events, context.trackers
        self._collapse_share = context.recipe.moe.collapse_share
        self._routing = context.routing
        self._alarmed: set[tuple[int, int]] = set()

    def end_step(self, supervised: int, progress: Progress) -> dict[str, float]:
        """End a step of so many tokens with loss. Returns `aux_loss` for the event, or nothing."""
        if self._routing is None:
            return {}
        routed = self._routing.end(supervised, self._sum)
        if routed.counts:
            progress.routed.add(tokens=routed.tokens, auxiliary=routed.auxiliary, counts=routed.counts)
        return {"aux_loss": routed.auxiliary}

    def report(self, progress: Progress) -> None:
        """At an evaluation, report the interval, and begin a new one."""
        if self._routing is None or not progress.routed.counts:
            return
        found = progress.routed.summary(self._routing.mixture.top_k, step=progress.step)
        self._events.emit("experts", **found)
        self._trackers.log(progress.step, dict(curves(found)))
        self._alarm(found)
        progress.experts, progress.routed = found, ExpertInterval()

    def _alarm(self, found: dict[str, Any]) -> None:
        """Report each expert that gets too many tokens, once until it recovers."""
        high = {
            (layer, expert): share
            for layer, facts in enumerate(found["layers"])
            for expert, share in enumerate(facts["shares"])
            if share > self._collapse_share
        }
        for (layer, expert), share in high.items():
            if (layer, expert) not in self._alarmed:
                self._events.emit(
                    "expert_collapse", step=found["step"], layer=layer, expert=expert, share=share,
                    collapse_share=self._collapse_share,
                )  # fmt: skip
        self._alarmed = set(high)

    def _sum(self, tensor: torch.Tensor) -> torch.Tensor:
        total = reduce(tensor, "sum")
        assert isinstance(total, torch.Tensor)
        return total


def curves(found: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the curves of an interval: three per layer."""
    for layer, facts in enumerate(found["layers"]):
        yield f"experts/layer_{layer:02d}/largest_share", max(facts["shares"])
        yield f"experts/layer_{layer:02d}/entropy", facts["entropy"]
        yield f"experts/layer_{layer:02d}/dead", float(len(facts["dead"]))
