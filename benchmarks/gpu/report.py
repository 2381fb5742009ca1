"""The page of results, as Markdown. Its first table answers what the benchmark is asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Facts = dict[str, Any]
SAME_LOSS = 0.01
"""Nats. Two ways to compute the same loss in bfloat16 differ by less."""


def lines_of_page(calls: list[Facts], parts: dict[str, Facts]) -> list[str]:
    """Return the page's lines.

    Args:
        calls: one entry for each call of the benchmark
        parts: the other parts by name
    """
    return list(_lines(calls, parts))


def _lines(calls: list[Facts], parts: dict[str, Facts]) -> Iterator[str]:
    last = calls[-1]
    yield f"# The default recipe's step on {last['name']}"
    yield ""
    model = "a toy model" if last["tiny"] else "a model in the shape of Qwen2.5 14B"
    yield f"The base is {model}, with {last['layers']} layers and random weights in NF4. Torch {last['torch']} may"
    yield f"allocate {last['vram_gib']} GiB. Processes run one at a time. The figures are medians."
    yield ""
    for call in calls:
        yield from _call(call, [name for name, facts in parts.items() if facts["call"] == call["call"]])
    of = {name: facts for name, facts in parts.items() if not _reason(facts)}
    peers = {name: facts for name, facts in parts.items() if name not in SECTIONS}
    if answers := list(_answers(of, last)):
        yield from ["", "## Answers", "", "| | |", "|---|---|"]
        yield from (f"| {question} | {answer} |" for question, answer in answers)
    for part, section in SECTIONS.items():
        if part in parts:
            yield ""
            yield from section(parts[part]) if part in of else [f"{TITLES[part]}: {_reason(parts[part])}."]
            if reason := parts[part].get("incomplete"):
                yield from ["", f"Incomplete: {reason}."]
    if peers:
        yield ""
        yield from _peers(peers, of.get("ours", {}))
    if goals := list(_goals(of, last["vram_gib"])):
        yield from ["", "## Goals", "", "| goal | measured | reached |", "|---|---|---|"]
        for goal, measured, reached in goals:
            yield f"| {goal} | {measured} | {'yes' if reached else '**no**'} |"


def _reason(facts: Facts) -> str | None:
    """Return why nothing was measured."""
    reason: str | None = facts.get("failed") or (f"not run: {facts['not_run']}" if "not_run" in facts else None)
    return reason


def _call(call: Facts, measured: list[str]) -> Iterator[str]:
    rounds = f"Rounds: {call['rounds']}, steps per round: {call['steps']}"
    yield f"- {call['call'][:16]}: {', '.join(measured) or 'nothing yet'}. {rounds}."
    if reason := _reason(call):
        yield f"  Matrix rate: {reason}."
        return
    about = f"Driver {call['driver']}, capability {call['capability']}" if call["driver"] else "A CPU"
    shapes = "; ".join(f"{shape}: {rate:.3g}" for shape, rate in call["shapes"].items())
    yield f"  {about}. Products of the model's shapes in bfloat16, with random numbers, reach"
    yield f"  {call['tflops']:.3g} TFLOP/s ({shapes})."


# --- the answers ----------------------------------------------------------------------------------------------


def _answers(of: dict[str, Facts], call: Facts) -> Iterator[tuple[str, str]]:
    """Yield each question that was measured, with its answer."""
    for part, samples in (("full-batch", "all at full length"), ("full-length", "all at full length"),
                          ("ours", "with the lengths of source files")):  # fmt: skip
        if part in of:
            facts = of[part]
            shape = f"rank {facts['rank']}, {facts['micro_batch']} at a time"
            question = f"speed in NF4, {shape}, {facts['tokens_per_step']:,.0f} tokens per step, {samples}"
            yield (
                question,
                f"{facts['tokens_per_second']:,.0f} tokens/s, {_share(facts['share_of_rate'])} of the matrix rate",
            )
    for part in ("full-batch", "full-length"):
        if "allocated_gib" in of.get(part, {}):
            facts = of[part]
            yield (
                f"memory, {facts['micro_batch']} at a time, against the plan under {call['vram_gib']} GiB",
                _memory(facts),
            )
    ours, peers = of.get("ours"), {name: facts for name, facts in of.items() if name not in SECTIONS}
    for name, facts in peers.items():
        if ours:
            yield (
                f"ours against {name} {facts['version']}",
                f"{ours['tokens_per_second'] / facts['tokens_per_second']:.2f} times as fast",
            )
    for name, facts in peers.items():
        if ours and facts.get("losses"):
            yield (
                f"loss of the first step, ours and {name}",
                f"{ours['losses'][0]:.4f} and {facts['losses'][0]:.4f} nats",
            )
    costs = (of.get("full-batch") or {}).get("costs") or (ours or {}).get("costs")
    if costs:
        whole = sum(costs["seconds"].values())
        largest = sorted(costs["seconds"].items(), key=lambda item: -item[1])
        yield "where the step's time goes", ", ".join(f"{part} {seconds / whole:.0%}" for part, seconds in largest)


def _share(share: float | None) -> str:
    return "an unknown share" if share is None else f"{share:.1%}"


def _memory(facts: Facts) -> str:
    ratio = facts["planned_allocated_gib"] / facts["allocated_gib"] - 1
    whole = facts["reserved_gib"] + facts["outside_gib"]
    return (
        f"{facts['allocated_gib']:.2f} GiB allocated, planned {facts['planned_allocated_gib']:.2f} ({ratio:+.1%}); "
        f"{whole:.2f} GiB with CUDA's own and paged memory, planned {facts['planned_peak_gib']:.2f}"
    )


# --- the sections ---------------------------------------------------------------------------------------------


def _step(facts: Facts) -> Iterator[str]:
    full = facts["part"] != "ours"
    yield f"## {TITLES[facts['part']]}"
    yield ""
    yield f"{facts['way']}; attention kernel {facts['kernel']}; {facts['tokens_per_step']:,.0f} tokens per step."
    yield ""
    yield "| | measured | planned |"
    yield "|---|---|---|"
    yield f"| tokens/s | {facts['tokens_per_second']:,.0f} | {facts['planned_tokens_per_second']:,.0f} |"
    if facts["share_of_rate"] is not None:
        work = f"({facts['gflop_per_token']:.3g} GFLOP per token, including recomputation)"
        yield f"| share of the matrix rate | {facts['share_of_rate']:.1%} {work} | |"
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
    yield f"The plan includes {facts['planned_cuda_gib']:.1f} GiB for CUDA itself and assumes a full micro-batch."
    if "costs" in facts:
        yield ""
        yield from _costs(facts["costs"], facts["tokens_per_second"], facts["gflop_per_token"], facts["share_of_rate"])


def _costs(costs: Facts, speed: float, gflop: float, share: float | None) -> Iterator[str]:
    """Yield the table of a profiled step. The matrix rate is the one that `share` refers to."""
    rate = speed * gflop * 1e9 / share if share else None
    whole, step = sum(costs["seconds"].values()), costs["step_seconds"]
    yield f"The last step again, under torch's profiler ({1000 * step:,.1f} ms without it):"
    yield ""
    yield "| part of the step | ms | share | of the matrix rate |"
    yield "|---|---|---|---|"
    for part, seconds in costs["seconds"].items():
        flops = costs["flops"].get(part)
        reached = f"{flops / seconds / rate:.1%}" if flops and rate and seconds else ""
        yield f"| {part} | {1000 * seconds:,.1f} | {seconds / whole:.1%} | {reached} |"
    if step > whole:
        yield f"| no part at work | {1000 * (step - whole):,.1f} | | |"


def _correctness(facts: Facts) -> Iterator[str]:
    yield f"## {TITLES['correctness']}"
    yield ""
    yield "| case | relative error | limit | worst matrix (limit: twice that) | |"
    yield "|---|---|---|---|---|"
    for case, row in facts["rows"].items():
        matrix = row["worst_of"].removeprefix("base_model.model.model.").removesuffix(".default.weight")
        verdict = "passes" if row["passed"] else "**FAILS**"
        yield f"| {case} | {row['whole']:.2e} | {row['most']:.0e} | {row['worst']:.2e} ({matrix}) | {verdict} |"


def _ablation(facts: Facts) -> Iterator[str]:
    yield f"## {TITLES['ablation']}, {facts['layers']} layers"
    yield ""
    yield "| | tokens/s | ratio | allocated, GiB |"
    yield "|---|---|---|---|"
    first = next(iter(facts["rows"].values()), None)
    for name, row in facts["rows"].items():
        memory = f"{row['allocated_gib']:.2f}" if "allocated_gib" in row else "–"
        ratio = row["tokens_per_second"] / first["tokens_per_second"]
        yield f"| {name} | {row['tokens_per_second']:,.0f} | {ratio:.2f} | {memory} |"
    for name, reason in facts["left_out"].items():
        yield f"| {name} | {reason} | | |"


def _peers(peers: dict[str, Facts], ours: Facts) -> Iterator[str]:
    yield "## Peers, with the same base, samples, LoRA and optimizer, with gradient checkpointing and padding"
    yield ""
    yield "| | tokens/s | our speed ÷ theirs | samples per micro-batch | allocated, GiB | loss of the first step |"
    yield "|---|---|---|---|---|---|"
    if ours.get("losses"):
        memory, loss = f"{ours['allocated_gib']:.2f}" if "allocated_gib" in ours else "–", f"{ours['losses'][0]:.4f}"
        yield f"| ours | {ours['tokens_per_second']:,.0f} | | {ours['micro_batch']}, packed | {memory} | {loss} |"
    for name, facts in peers.items():
        if reason := _reason(facts):
            yield f"| {name} | {reason} | | | | |"
            continue
        ratio = f"{ours['tokens_per_second'] / facts['tokens_per_second']:.2f}" if ours else "–"
        memory = f"{facts['allocated_gib']:.2f}" if "allocated_gib" in facts else "–"
        loss = f"{facts['losses'][0]:.4f}" if facts.get("losses") else "–"
        title = f"{name} {facts['version']}"
        yield f"| {title} | {facts['tokens_per_second']:,.0f} | {ratio} | {facts['batch']} | {memory} | {loss} |"


def _goals(of: dict[str, Facts], vram_gib: float) -> Iterator[tuple[str, str, bool]]:
    """Yield each goal that was measured, with the measured value and whether it reaches the goal."""
    ours, full = of.get("ours", {}), of.get("full-length", {})
    peers = {name: facts for name, facts in of.items() if name not in SECTIONS}
    if "allocated_gib" in full:
        whole = full["reserved_gib"] + full["outside_gib"]
        goal = f"full length within {vram_gib} GiB, including CUDA's own and paged memory"
        yield goal, f"{whole:.2f} GiB", whole <= vram_gib
        off = full["planned_allocated_gib"] / full["allocated_gib"] - 1
        yield "the plan within 5 % of the measured peak", f"{off:+.1%}", abs(off) <= 0.05
    if ours.get("share_of_rate") is not None:
        yield "at least 60 % of the matrix rate", f"{ours['share_of_rate']:.1%}", ours["share_of_rate"] >= 0.6
    if peers and ours:
        best = max(peers, key=lambda name: peers[name]["tokens_per_second"])
        ratio = ours["tokens_per_second"] / peers[best]["tokens_per_second"]
        yield f"faster than every peer that runs here ({best} is the fastest)", f"{ratio:.2f} times", ratio > 1
    if ours.get("losses") and (losses := {name: f["losses"][0] for name, f in peers.items() if f.get("losses")}):
        off = max((abs(loss - ours["losses"][0]) for loss in losses.values()), default=0.0)
        yield f"the peers' loss of the first step, within {SAME_LOSS} nats", f"{off:.4f}", off <= SAME_LOSS


TITLES = {
    "correctness": "Gradients against PEFT's layers and full logits in float32",
    "full-batch": "Our step as one micro-batch of the recipe's size, every sample at full length",
    "full-length": "Our step, every sample at full length",
    "ours": "Our step, samples with the lengths of source files",
    "ablation": "One thing changed at a time",
}
SECTIONS = {
    "correctness": _correctness,
    "full-batch": _step,
    "full-length": _step,
    "ours": _step,
    "ablation": _ablation,
}
"""Maps each part to its section, in the order of the page. All other parts are peers."""
