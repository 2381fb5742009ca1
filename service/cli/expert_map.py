"""Draws the use of a mixture's experts: one row per layer, one column per expert."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from service.cli.console import out, print_table

SHADES = " ░▒▓█"
"""From no tokens to twice the balanced share or more."""
CELL_WIDTH = 2


def print_experts(experts: Mapping[str, Any]) -> None:
    """Print the map of a run's last interval, as in its report."""
    layers = experts["layers"]
    out.print(
        f"expert use up to step {experts['step']} ({experts['steps']} steps, {experts['tokens']:,} tokens; "
        f"load balancing loss {experts['aux_loss']:.3f}, balanced {experts['top_k']})",
        markup=False,
    )
    print_table(
        None,
        ["layer", "experts", "largest share", "entropy", "dead"],
        [[number, *_row(layer, experts["top_k"])] for number, layer in enumerate(layers)],
    )
    out.print(
        f"{SHADES[1]} {SHADES[2]} {SHADES[3]} {SHADES[4]}   half, balanced, one and a half, twice or more", markup=False
    )


def _row(layer: Mapping[str, Any], top_k: int) -> list[str]:
    shares = layer["shares"]
    largest = max(range(len(shares)), key=shares.__getitem__)
    return [
        heat(shares, top_k),
        f"{shares[largest]:.1%} on expert {largest}",
        f"{layer['entropy']:.3f}",
        ", ".join(map(str, layer["dead"])) or "none",
    ]


def heat(shares: list[float], top_k: int) -> str:
    """Return two characters per expert. A balanced share, top_k / experts, has the middle shade."""
    balanced = top_k / len(shares)
    levels = [min(len(SHADES) - 1, round(2 * share / balanced)) for share in shares]
    return "".join(SHADES[level] * CELL_WIDTH for level in levels)
