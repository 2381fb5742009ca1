"""One run in detail: what it trained on, what it measured, and why its candidate was promoted or not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from db.runs import Run
from service.cli.console import out, print_table, when
from service.cli.expert_map import print_experts
from service.gate.interval import Interval
from service.gate.words import DECISIONS, MODELS


def print_run(run: Run) -> None:
    """Print a run. A run without a report shows what the ledger knows."""
    print_table(None, [], [[name, value] for name, value in _facts(run)])
    report = run.report or {}
    if evaluation := report.get("evaluation"):
        print_table(
            "held-out files that judge",
            ["model", "loss", "perplexity", "top-1 accuracy"],
            [[title, *_scores(evaluation.get(name) or {})] for name, title in MODELS.items()],
        )
    if experts := report.get("experts"):
        print_experts(experts)
    if verdict := report.get("verdict"):
        _print_verdict(verdict)


def _facts(run: Run) -> Iterator[tuple[str, Any]]:
    report = run.report or {}
    yield "run", run.run_id
    yield "state", run.state
    if run.phase is not None:
        yield "phase", run.phase
    yield "reason", run.reason
    yield "parent version", run.parent_version if run.parent_version is not None else "none: the base alone"
    if run.trunk_run_id is not None:
        yield "trained on from", f"the open candidate of run {run.trunk_run_id}"
    if run.published_in is not None:
        yield "published in", f"version {run.published_in}"
    yield "claimed at", when(run.created_at)
    yield "ended at", when(run.ended_at)
    yield "starts", run.launches
    if rows := report.get("rows"):
        yield "rows", ", ".join(f"{count} {name}" for name, count in rows.items() if count)
    if steps := report.get("steps"):
        early = ", stopped early" if report.get("early_stopped") else ""
        yield "steps", f"{steps.get('done')} of {steps.get('total')}{early}; the best is {steps.get('best')}"
    if train := report.get("train"):
        yield "trained tokens", train.get("tokens_published")
    if (joules := report.get("energy_joules")) is not None:
        yield "GPU energy", _energy(joules, report)
    if held_out := report.get("held_out"):
        yield "judging samples", held_out.get("samples")


def _energy(joules: float, report: Mapping[str, Any]) -> str:
    """Return "0.420 kWh (0.13 EUR)"."""
    cost = report.get("energy_cost")
    price = f" ({cost['amount']:.2f} {cost['currency']})".replace(" )", ")") if cost else ""
    guess = "" if report.get("energy_source") == "counter" else ", from power readings"
    return f"{joules / 3.6e6:.3f} kWh{price}{guess}"


def _scores(score: dict[str, Any]) -> list[str]:
    return [f"{score[key]:.4f}" if isinstance(score.get(key), float) else ""
            for key in ("loss", "perplexity", "token_accuracy")]  # fmt: skip


def _print_verdict(verdict: Mapping[str, Any]) -> None:
    """Print the decision, why, and what each rule found. Reports of earlier versions have no rules."""
    decision = verdict.get("decision") or ("promote" if verdict.get("promote") else "refuse")
    out.print(f"verdict: {DECISIONS[decision]}", markup=False)
    for reason in verdict.get("reasons", ()):
        out.print(f"  {reason}", markup=False)
    if rules := verdict.get("rules"):
        print_table("rules (losses in nats per token)", ["rule", "outcome", "what was found"],
                    [[rule["rule"], rule["outcome"], rule["text"]] for rule in rules])  # fmt: skip
    for name, found in verdict.get("intervals", {}).items():
        out.print(f"{name} files: {Interval(**found).text()}", markup=False)
