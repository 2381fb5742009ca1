"""Seconds that the processes of a step need to exchange gradients and weights.

Ring algorithms (Patarasuk and Yuan 2009): each of N cards sends and receives (N - 1) / N of the bytes for a gather or a
reduce-scatter, and twice as much for an all-reduce.

             each pass                            each step
    ddp      -                                    all-reduce of the gradients
    zero2    -                                    all-reduce of the gradients, gather of the adapter
    zero3    gathers of all weights, forward      -
    fsdp2    and backward; reduce-scatter
             of the gradients in float32

Cards that share a pack exchange all-to-alls in each layer of each pass (`all_to_all_bytes` in memory.py). They are not
hidden: attention waits for them.

A gather is hidden behind the work of the layer before. Only what takes longer than that work counts.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainer.plan.cards import Card
from trainer.plan.static import Line

EXCHANGE_EFFICIENCY = 0.7
"""Share of a link's nominal rate that large exchanges reach. An assumption: NCCL's own tests commonly show
0.7 to 0.85."""
BUCKET_ELEMENTS = 1 << 24
"""With ddp, gradients are summed in pieces of so many numbers, so that the copy stays small."""
WEIGHTS = ("weights", "embeddings", "output head", "routers", "norms", "adapter")
"""Prefixes of the lines that zero3 and fsdp2 gather."""
FLOAT32_BYTES = 4
BITS_PER_BYTE = 8


@dataclass(frozen=True, kw_only=True)
class Network:
    """What joins the cards."""

    cards_per_machine: int = 8
    gbits: float = 100.0
    """Rate of a machine's network, each way, in 10^9 bits per second."""

    def bytes_per_second(self, card: Card, cards: int) -> float:
        """Rate of a ring through all cards: that of its slowest link."""
        slowest = card.link_gbs
        if cards > self.cards_per_machine:
            slowest = min(slowest, self.gbits / BITS_PER_BYTE)
        return slowest * 1e9 * EXCHANGE_EFFICIENCY


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """Seconds of exchange. Alone, a card exchanges nothing."""

    hidden: float = 0.0
    """Of each pass, behind its work."""
    open: float = 0.0
    """Of each pass, after its work."""
    of_step: float = 0.0
    """Of each step, once."""


def exchange(strategy: str, lines: list[Line], trained: int, card: Card, cards: int, network: Network) -> Exchange:
    """Return the seconds of one strategy.

    Args:
        lines: static lines of one card that holds everything
        trained: number of trained parameters
    """
    if cards == 1:
        return Exchange()
    one_way = (cards - 1) / cards / network.bytes_per_second(card, cards)
    gradients = sum(line.bytes for line in lines if line.name.startswith("gradients"))
    adapter = sum(line.bytes for line in lines if line.name.startswith("adapter"))
    match strategy:
        case "ddp":
            return Exchange(of_step=2 * gradients * one_way)
        case "zero2":
            return Exchange(of_step=(2 * gradients + adapter) * one_way)
        case _:
            gathered = sum(line.bytes for line in lines if line.name.startswith(WEIGHTS))
            return Exchange(hidden=2 * gathered * one_way, open=FLOAT32_BYTES * trained * one_way)
