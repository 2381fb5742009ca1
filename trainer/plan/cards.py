"""GPUs that plans can be made for."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Card:
    """Specification of a card."""

    vram_gib: float
    """Memory available to a program, which is less than advertised."""
    tflops: float
    """Dense bf16 rate with float32 accumulation, in 10^12 FLOP/s."""
    bandwidth_gbs: float
    """Memory bandwidth in 10^9 bytes/s."""
    link_gbs: float
    """Rate to the other cards of its machine, each way, in 10^9 bytes/s."""


# Rates and bandwidths: NVIDIA's datasheets and architecture papers, dense (half of the rate "with sparsity"), SXM where
# there are two. Links: NVLink where the card has it, else PCIe 4.0 or 5.0 with 16 lanes.
# Memory: what the driver reports, in part taken by ECC. h200: rate of large matrix products as measured.
CARDS = {
    "rtx-5090": Card(vram_gib=31.3, tflops=209, bandwidth_gbs=1792, link_gbs=63),
    "rtx-4090": Card(vram_gib=23.5, tflops=165, bandwidth_gbs=1008, link_gbs=32),
    "rtx-3090": Card(vram_gib=23.6, tflops=71, bandwidth_gbs=936, link_gbs=32),
    "l40s": Card(vram_gib=44.4, tflops=362, bandwidth_gbs=864, link_gbs=32),
    "a100-40": Card(vram_gib=39.4, tflops=312, bandwidth_gbs=1555, link_gbs=300),
    "a100-80": Card(vram_gib=79.2, tflops=312, bandwidth_gbs=2039, link_gbs=300),
    "h100": Card(vram_gib=79.1, tflops=989, bandwidth_gbs=3350, link_gbs=450),
    "h200": Card(vram_gib=139.0, tflops=790, bandwidth_gbs=4800, link_gbs=450),
}
"""By short name."""
DEFAULT_CARD = "rtx-5090"


def card_named(device: str) -> str:
    """Return the card for a device name ("NVIDIA GeForce RTX 5090"), else the default card.

    Only the ratio of rate and bandwidth decides between plans, so the default is good enough for unknown cards.
    """
    words = device.lower().replace("-", " ").split()
    for name in CARDS:
        parts = name.split("-")
        if all(part in words or f"{part}gb" in words for part in parts):
            return name
    return DEFAULT_CARD
