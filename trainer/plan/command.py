"""`python -m trainer plan RECIPE.yaml`: prints a plan."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

from trainer.errors import UnusableInput
from trainer.model.sequence import check_shared
from trainer.model.shapes import architecture
from trainer.plan.cards import CARDS, DEFAULT_CARD, GIB
from trainer.plan.choose import (
    Plan,
    changes_that_fit,
    fastest_fitting,
    possible_plans,
    smallest_plan,
    trained_numbers,
)
from trainer.plan.corpus import corpus_cost, with_corpus
from trainer.plan.evaluation import evaluation_cost
from trainer.plan.exchange import Network
from trainer.plan.model import Model, read_model
from trainer.plan.show import bar, count, exchange_line, line_dict, other_plans, summary, table
from trainer.plan.speed import EFFICIENCY
from trainer.recipe import Recipe

NOTHING_FITS = 3
MOST_CARDS = 4096


def plan_command(
    recipe: Recipe,
    *,
    card: str | None,
    vram_gib: float | None,
    gpus: int | None = None,
    strategy: str | None = None,
    sequence: int | None = None,
    network_gbits: float | None = None,
    samples: int | None = None,
    tokens_per_sample: float | None = None,
    as_json: bool,
) -> int:
    """Print the fastest plan that fits. Returns 0, or 3 if none fits.

    Args:
        card: a name in CARDS, for speed and memory. `vram_gib` overrides the memory
        gpus: number of cards. It, `strategy` and `sequence` override the recipe's section `distributed`
        network_gbits: rate between machines of eight cards each, each way, in 10^9 bits per second
        samples: size of the corpus. It and `tokens_per_sample` override the recipe's

    Raises:
        UnusableInput: the card or the corpus is unknown, or the base is not available or cannot be planned.
    """
    recipe = with_cards(with_corpus(recipe, samples, tokens_per_sample), gpus, strategy, sequence)
    network = Network() if network_gbits is None else Network(gbits=network_gbits)
    if not 0 < network.gbits < math.inf:
        raise UnusableInput(f"--network-gbits: {network_gbits} must be a number above 0, and finite")
    if card is not None and card not in CARDS:
        raise UnusableInput(f"--card: {card!r} is not one of {', '.join(CARDS)}. Use --vram-gib for other cards")
    name = card or DEFAULT_CARD
    vram_bytes = int((vram_gib or CARDS[name].vram_gib) * GIB)
    skeleton, source = architecture(recipe.base)
    model = read_model(skeleton, recipe.lora)
    check_shared(recipe, heads=model.heads, experts=model.experts > 0)
    plans = possible_plans(model, recipe, CARDS[name], network)
    plan = fastest_fitting(plans, vram_bytes)
    changes = [] if plan else changes_that_fit(model, recipe, CARDS[name], vram_bytes)
    shown = plan or smallest_plan(plans)
    cost = evaluation_cost(model, recipe, shown, CARDS[name])
    corpus = corpus_cost(model, recipe, shown, CARDS[name])
    if as_json:
        facts = _facts(plans, plan, recipe, changes, card=name, vram_bytes=vram_bytes, source=source)
        facts |= {"evaluation_share": round(cost.share, 4), **_trained(model, recipe)}
        facts |= {"corpus": None if corpus is None else corpus.facts()}
        said = json.dumps(facts, indent=1)
    else:
        head = _head(model, recipe, source)
        costs = [cost.text(), *([] if corpus is None else [corpus.text(recipe.distributed.cards)])]
        report = _report(plans, plan, recipe, changes, costs, card=name, vram_bytes=vram_bytes)
        said = "\n".join([*head, *report])
    sys.stdout.write(said + "\n")
    return 0 if plan else NOTHING_FITS


def with_cards(recipe: Recipe, gpus: int | None, strategy: str | None, sequence: int | None = None) -> Recipe:
    """Replace the recipe's number of cards, its strategy and the number of cards that share a pack by flags.

    Raises:
        UnusableInput: a number is out of range, or the cards cannot share packs so.
    """
    changes = {"processes": gpus, "strategy": strategy, "sequence": sequence}
    if gpus is not None and not 1 <= gpus <= MOST_CARDS:
        raise UnusableInput(f"--gpus: {gpus} must be from 1 to {MOST_CARDS:,}")
    given = {name: value for name, value in changes.items() if value is not None}
    cards = recipe.distributed.cards if gpus is None else gpus
    if cards == 1 and strategy not in (None, "auto", "ddp"):
        raise UnusableInput(f"--strategy: one card shares nothing, so {strategy} needs --gpus of at least 2")
    changed = replace(recipe.distributed, **given)  # type: ignore[arg-type]
    if changed.sequence < 1 or cards % changed.sequence:
        of_recipe = "distributed.sequence" if sequence is None else "--sequence"
        raise UnusableInput(
            f"{of_recipe}: {changed.sequence} must divide the number of cards, {cards}. Set --gpus, too"
        )
    return replace(recipe, distributed=changed)


def _head(model: Model, recipe: Recipe, source: str) -> Iterator[str]:
    trained = _trained(model, recipe)
    yield f"{recipe.base.model}: {count(model.parameters)} parameters, by {source}"
    yield (
        f"rank {recipe.lora.rank} on {len(recipe.lora.targets)} matrices per layer: "
        f"{count(trained['trained_parameters'])} trained, {trained['trained_share']:.2%} of all"
    )


def _trained(model: Model, recipe: Recipe) -> dict[str, Any]:
    """Count the adapter's parameters, also as a share of all, the adapter's included."""
    adapter = trained_numbers(model, recipe)
    everything = model.parameters + adapter
    return {"trained_parameters": adapter, "parameters": everything, "trained_share": round(adapter / everything, 6)}


def _report(
    plans: list[Plan],
    plan: Plan | None,
    recipe: Recipe,
    changes: list[str],
    costs: list[str],
    *,
    card: str,
    vram_bytes: int,
) -> Iterator[str]:
    shown = plan or smallest_plan(plans)
    yield ""
    yield f"{'Fastest plan that fits' if plan else 'Plan with the least memory'}: {summary(shown, recipe)}"
    yield ""
    yield from table(shown)
    yield ""
    yield from bar(shown, vram_bytes)
    yield ""
    yield (
        f"  {shown.tokens_per_second:,.0f} tokens/s on {card} at {EFFICIENCY:.0%} of its dense rate: "
        f"{shown.flops_per_token / 1e9:.0f} GFLOP per token"
    )
    if recipe.distributed.cards > 1:
        yield f"  {exchange_line(shown)}"
        if recipe.distributed.strategy == "auto" and shown.strategy != "ddp":
            yield f"  `auto` trains with ddp: write `distributed: {{strategy: {shown.strategy}}}` into the recipe"
    yield from (f"  {cost}" for cost in costs)
    yield ""
    yield from other_plans(plans, vram_bytes)
    if plan is None:
        yield ""
        yield f"No plan fits {vram_bytes / GIB:.1f} GiB. Any one of these changes would help:"
        yield from (f"  {change}" for change in changes)


def _facts(
    plans: list[Plan], plan: Plan | None, recipe: Recipe, changes: list[str], *, card: str, vram_bytes: int, source: str
) -> dict[str, Any]:
    shown = plan or smallest_plan(plans)
    return {
        "model": recipe.base.model,
        "config_from": source,
        "card": card,
        "vram_bytes": vram_bytes,
        "fits": plan is not None,
        **asdict(shown.choice),
        "accumulation": shown.accumulation,
        "processes": recipe.distributed.cards,
        "strategy": shown.strategy,
        "sequence": shown.sequence,
        "step_seconds": round(shown.step_seconds, 4),
        "exchange_seconds": {name: round(value, 6) for name, value in asdict(shown.exchange).items()},
        "peak_bytes": shown.peak_bytes,
        "allocated_bytes": shown.allocated_bytes,
        "host_bytes": shown.host_bytes,
        "tokens_per_second": round(shown.tokens_per_second, 1),
        "flops_per_token": round(shown.flops_per_token),
        "lines": [line_dict(line) for line in shown.lines],
        "changes_that_fit": changes,
    }
