"""Prints a plan as a table, with a bar of its memory use."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.plan.cards import GIB
from trainer.plan.choose import Plan
from trainer.plan.static import Line
from trainer.recipe import Recipe

BAR_WIDTH = 60
GROUPS = {
    "█": ("weights", ("weights", "quantization", "embeddings", "output head", "norms", "routers", "gathered")),
    "▓": ("adapter, gradients, optimizer", ("adapter", "gradients", "optimizer")),
    "▒": ("activations", ("checkpoints", "kept", "positions", "one layer", "one matrix", "the loss")),
    "░": ("the card's own", ("allocator", "CUDA")),
}
"""Segments of the bar: label, and prefixes of its lines' names."""


def table(plan: Plan) -> Iterator[str]:
    """Yield all lines. Lines that do not count at the peak are in brackets."""
    unit, name = (GIB, "GiB") if plan.peak_bytes >= 2 * GIB else (GIB >> 10, "MiB")
    for line in plan.lines:
        size = f"{line.bytes / unit:.2f}"
        yield f"  {line.name:<32}{size if line.counted else f'({size})':>9}"
    yield f"  {'peak':<32}{plan.peak_bytes / unit:>9.2f} {name}"


def bar(plan: Plan, vram_bytes: int) -> Iterator[str]:
    """Yield the bar of memory use. · is free."""
    drawn, legend = "", []
    for sign, (name, beginnings) in GROUPS.items():
        size = sum(line.bytes for line in plan.lines if line.counted and line.name.startswith(beginnings))
        drawn += sign * round(BAR_WIDTH * size / max(vram_bytes, plan.peak_bytes))
        legend.append(f"{sign} {name} {size / GIB:.1f}")
    free = (vram_bytes - plan.peak_bytes) / GIB
    yield f"  {drawn:·<{BAR_WIDTH}}"
    yield "  " + "   ".join([*legend, f"· free {free:.1f}" if free >= 0 else f"too much by {-free:.1f}"])


def summary(plan: Plan, recipe: Recipe) -> str:
    """One line for a plan's choice."""
    choice = plan.choice
    samples = choice.micro_batch_tokens // recipe.data.max_length
    where = ", kept on the host" if choice.offload else ""
    return (
        f"{choice.micro_batch_tokens:,} tokens at a time ({samples} × {recipe.data.max_length:,}), "
        f"{plan.accumulation} times per step; checkpointing {choice.checkpointing}{where}{_cards(plan, recipe)}"
    )


def _cards(plan: Plan, recipe: Recipe) -> str:
    processes = recipe.distributed.cards
    if processes == 1:
        return ""
    shared = f"; {plan.sequence} cards share each pack" if plan.sequence > 1 else ""
    return f"{shared}; {processes} cards with {plan.strategy}, one of which holds"


def exchange_line(plan: Plan) -> str:
    """One line about the exchange between cards."""
    exchange, passes = plan.exchange, plan.accumulation
    waited = passes * exchange.open + exchange.of_step
    behind = f", and for {passes * exchange.hidden:.2g} s during the work" if exchange.hidden else ""
    return (
        f"a step of full samples takes {plan.step_seconds:.3g} s. The cards exchange for {waited:.2g} s of it{behind}"
    )


def other_plans(plans: list[Plan], vram_bytes: int) -> Iterator[str]:
    """Yield the other plans, fastest first."""
    several = len({plan.strategy for plan in plans}) > 1
    strategy = f"{'strategy':<10}" if several else ""
    yield f"  {strategy}{'tokens':>7}  {'checkpointing':<14}{'on the host':>12}{'peak GiB':>10}{'tokens/s':>12}"
    for plan in plans:
        choice = plan.choice
        fits = "" if plan.peak_bytes <= vram_bytes else "   does not fit"
        host = f"{plan.host_bytes / GIB:.1f} GiB" if choice.offload else ""
        strategy = f"{plan.strategy:<10}" if several else ""
        yield (
            f"  {strategy}{choice.micro_batch_tokens:>7,}  {choice.checkpointing:<14}{host:>12}"
            f"{plan.peak_bytes / GIB:>10.1f}{plan.tokens_per_second:>12,.0f}{fits}"
        )


def count(number: int) -> str:
    """Format a number of parameters in millions or billions."""
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.2f} M"


def line_dict(line: Line) -> dict[str, object]:
    """For JSON."""
    return {"name": line.name, "bytes": line.bytes, "kind": line.kind, "at_peak": line.counted}
