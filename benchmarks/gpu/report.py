"""Write the results as Markdown, and as JSON lines next to it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from world import World

from trainer.plan.cards import GIB
from trainer.plan.memory import CUDA_BYTES

Facts = dict[str, Any]


def write_report(target: Path, found: list[Facts], world: World, *, rounds: int) -> None:
    """Write FILE.md and FILE.jsonl."""
    target.parent.mkdir(parents=True, exist_ok=True)
    by_part = {facts["part"]: facts for facts in found}
    target.write_text("\n".join(_lines(by_part, world, rounds)) + "\n", encoding="utf-8")
    target.with_suffix(".jsonl").write_text("".join(json.dumps(facts) + "\n" for facts in found), encoding="utf-8")


def _lines(found: dict[str, Facts], world: World, rounds: int) -> Iterator[str]:
    card = found["card"]
    yield f"# The default recipe's step on {card.get('name', 'a card')}"
    yield ""
    if "failed" in card:
        yield f"Matrix rate: {card['failed']}."
    else:
        about = f"driver {card['driver']}, capability {card['capability']}" if card["driver"] else "a CPU"
        yield f"torch {card['torch']}, {about}. Products of the model's shapes in bfloat16, with random numbers, reach"
        yield f"{card['tflops']:.3g} TFLOP/s (" + "; ".join(f"{s}: {r:.3g}" for s, r in card["shapes"].items()) + ")."
    model = "a toy model" if world.tiny else "a model in the shape of Qwen2.5 14B"
    yield f"The base is {model}, with {world.layers} layers and random weights in NF4. Torch may allocate"
    yield f"{world.vram_gib} GiB. Rounds: {rounds}. Steps per round: {world.steps}. Processes run one at a time."
    yield "The figures are medians."
    for part, section in SECTIONS.items():
        if part in found:
            facts = found[part]
            yield ""
            yield from [f"{part}: {facts['failed']}."] if "failed" in facts else section(facts, found)
    if peers := {name: facts for name, facts in found.items() if name not in {"card", *SECTIONS}}:
        yield ""
        yield from _peers(peers, found.get("ours", {}))
    if goals := list(_goals(found, peers, world)):
        yield from ["", "## Goals", "", "| goal | measured | reached |", "|---|---|---|"]
        for goal, measured, reached in goals:
            yield f"| {goal} | {measured} | {'yes' if reached else '**no**'} |"


def _step(facts: Facts, _: dict[str, Facts]) -> Iterator[str]:
    full = facts["part"] == "full-length"
    yield (
        "## Our step, every sample at full length" if full else "## Our step, samples with the lengths of source files"
    )
    yield ""
    yield f"{facts['way']}; attention kernel {facts['kernel']}; {facts['tokens_per_step']:,.0f} tokens per step."
    yield ""
    yield "| | measured | planned |"
    yield "|---|---|---|"
    yield f"| tokens/s | {facts['tokens_per_second']:,.0f} | {facts['planned_tokens_per_second']:,.0f} |"
    if facts["share_of_rate"] is not None:
        share = (
            f"{facts['share_of_rate']:.1%} ({facts['gflop_per_token']:.3g} GFLOP per token, including recomputation)"
        )
        yield f"| share of the matrix rate | {share} | |"
    if "allocated_gib" in facts:
        ratio = facts["planned_allocated_gib"] / facts["allocated_gib"] - 1
        planned = f"{facts['planned_allocated_gib']:.2f}" + (f" ({ratio:+.1%})" if full else "")
        yield f"| allocated at the peak, GiB | {facts['allocated_gib']:.2f} | {planned} |"
        whole = facts["reserved_gib"] + facts["outside_gib"]
        yield f"| reserved at the peak, GiB | {facts['reserved_gib']:.2f} | |"
        yield f"| including CUDA's own and paged memory, GiB | {whole:.2f} | {facts['planned_peak_gib']:.2f} |"
    else:
        yield f"| allocated at the peak, GiB | – | {facts['planned_allocated_gib']:.3f} |"
    yield ""
    yield f"The plan includes {CUDA_BYTES / GIB:.1f} GiB for CUDA itself and assumes a full micro-batch."


def _correctness(facts: Facts, _: dict[str, Facts]) -> Iterator[str]:
    yield "## Gradients against PEFT's layers and full logits in float32"
    yield ""
    yield "| case | relative error | limit | worst matrix (limit: twice that) | |"
    yield "|---|---|---|---|---|"
    for case, row in facts["rows"].items():
        matrix = row["worst_of"].removeprefix("base_model.model.model.").removesuffix(".default.weight")
        verdict = "passes" if row["passed"] else "**FAILS**"
        yield f"| {case} | {row['whole']:.2e} | {row['most']:.0e} | {row['worst']:.2e} ({matrix}) | {verdict} |"


def _ablation(facts: Facts, _: dict[str, Facts]) -> Iterator[str]:
    yield f"## One thing changed at a time, {facts['layers']} layers"
    yield ""
    yield "| | tokens/s | ratio | allocated, GiB |"
    yield "|---|---|---|---|"
    first = next(iter(facts["rows"].values()), None)
    for name, row in facts["rows"].items():
        memory = f"{row['allocated_gib']:.2f}" if "allocated_gib" in row else "–"
        ratio = row["tokens_per_second"] / first["tokens_per_second"]
        yield f"| {name} | {row['tokens_per_second']:,.0f} | {ratio:.2f} | {memory} |"
    for name, reason in facts["not_run"].items():
        yield f"| {name} | {reason} | | |"


def _peers(peers: dict[str, Facts], ours: Facts) -> Iterator[str]:
    yield "## Peers, with the same base, samples, LoRA and optimizer, with gradient checkpointing and padding"
    yield ""
    yield "| | tokens/s | our speed ÷ theirs | samples per micro-batch | allocated, GiB |"
    yield "|---|---|---|---|---|"
    for name, facts in peers.items():
        if "failed" in facts:
            yield f"| {name} | {facts['failed']} | | | |"
            continue
        ratio = f"{ours['tokens_per_second'] / facts['tokens_per_second']:.2f}" if "tokens_per_second" in ours else "–"
        memory = f"{facts['allocated_gib']:.2f}" if "allocated_gib" in facts else "–"
        title = f"{name} {facts['version']}"
        yield f"| {title} | {facts['tokens_per_second']:,.0f} | {ratio} | {facts['batch']} | {memory} |"


def _goals(found: dict[str, Facts], peers: dict[str, Facts], world: World) -> Iterator[tuple[str, str, bool]]:
    """Yield each goal that was measured, with the measured value and whether it reaches the goal."""
    ours, full = found.get("ours", {}), found.get("full-length", {})
    if "allocated_gib" in full:
        whole = full["reserved_gib"] + full["outside_gib"]
        goal = f"full length within {world.vram_gib} GiB, including CUDA's own and paged memory"
        yield goal, f"{whole:.2f} GiB", whole <= world.vram_gib
        off = full["planned_allocated_gib"] / full["allocated_gib"] - 1
        yield "the plan within 5 % of the measured peak", f"{off:+.1%}", abs(off) <= 0.05
    if ours.get("share_of_rate") is not None:
        yield "at least 60 % of the matrix rate", f"{ours['share_of_rate']:.1%}", ours["share_of_rate"] >= 0.6
    rates = {name: facts["tokens_per_second"] for name, facts in peers.items() if "tokens_per_second" in facts}
    if rates and "tokens_per_second" in ours:
        best = max(rates, key=rates.__getitem__)
        ratio = ours["tokens_per_second"] / rates[best]
        yield f"faster than every peer that runs here ({best} is the fastest)", f"{ratio:.2f} times", ratio > 1


SECTIONS = {"correctness": _correctness, "full-length": _step, "ours": _step, "ablation": _ablation}
"""Maps each part to its section, in the order of the page. All other parts are peers."""
