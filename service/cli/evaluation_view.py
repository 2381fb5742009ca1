"""Prints an evaluation for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from service.cli.console import out, print_table
from service.gate.interval import Interval

MODELS = {"anchor": "base alone", "current": "current adapter", "candidate": "this adapter"}
MOST_SLICES = 10
WHOLE = ("split", "all")
DIVISIONS = ("split", "all", "language", "repository", "kind")


def print_evaluation(found: Mapping[str, Any]) -> None:
    """Print an evaluation: losses, or measures by slice."""
    if "models" in found:
        _print_losses(found)
    else:
        _print_measures(found)
    out.print(f"results: {found['folder']}", markup=False)


def _print_measures(found: Mapping[str, Any]) -> None:
    lines = []
    for division in DIVISIONS:
        members = found.get(division, {})
        for name, measures in list(members.items())[:MOST_SLICES]:
            if len(members) == 1 and division not in WHOLE:
                continue  # it is the whole again
            shown = name if division in WHOLE else f"{division} {name}"
            lines += [[shown, measures["tasks"], measures["samples"], *line] for line in _measures(measures)]
    if lines:
        print_table(
            f"{found['suite']}, {found['adapter']}",
            ["slice", "tasks", "answers", "measure", "value", "95 % interval over tasks"],
            lines,
        )
        reasons = ", ".join(f"{count} {reason}" for reason, count in found["reasons"].items())
        out.print(f"verdicts: {reasons}", markup=False)
    else:
        out.print(
            f"{found['samples']} answers to {found['tasks']} tasks generated. Nothing was executed: "
            "add --execute to run the tests on them, in the sandbox (docs/evaluation.md)"
        )
    if cut := found["cut_at_max_tokens"]:
        out.print(f"{cut} answers reached --max-tokens")
    if compared := found.get("against"):
        for line in _comparison(compared):
            out.print(line, markup=False)


def _measures(measures: Mapping[str, Any]) -> Iterator[list[str]]:
    for name, value in measures.items():
        if isinstance(value, dict):
            yield [name, f"{value['value']:.4f}", f"{value['low']:.4f} to {value['high']:.4f}"]


def _comparison(compared: Mapping[str, Any]) -> Iterator[str]:
    passed = compared["passed"]
    yield f"against {compared['folder']}, {passed['tasks']} tasks that both have:"
    yield (
        f"  difference {passed['difference']:+.4f}, 95 % interval {passed['low']:+.4f} to {passed['high']:+.4f} "
        "(paired bootstrap over tasks)"
    )
    yield (
        f"  passed here only {passed['first_only']}, there only {passed['second_only']}: "
        f"exact McNemar p = {passed['p_value']:.4f}"
    )
    if near := compared.get("edit_similarity"):
        yield (f"  edit similarity {near['difference']:+.4f}, 95 % interval {near['low']:+.4f} to {near['high']:+.4f}")


def _print_losses(found: Mapping[str, Any]) -> None:
    for division, members in found["slices"].items():
        if len(members) == 1 and division not in WHOLE:
            continue
        lines = []
        for one in members[:MOST_SLICES]:
            for model, title in MODELS.items():
                score = one["models"][model]
                interval = "" if score["low"] is None else f"{score['low']:.4f} to {score['high']:.4f}"
                lines.append(
                    [one["name"] if model == "anchor" else "", one["files"] if model == "anchor" else "", title,
                     f"{score['loss']:.4f}", interval, f"{score['perplexity']:.3f}", f"{score['token_accuracy']:.4f}"]
                )  # fmt: skip
        title = f"held-out files by {division}, {found['adapter']}" if division != "all" else "held-out files"
        print_table(title, [division, "files", "model", "loss", "95 % interval", "perplexity", "accuracy"], lines)
    for against in ("current", "anchor"):
        for name, source in (("t interval over files", found["slices"]["all"][0]["differences"]),
                             ("paired bootstrap over files", found["bootstrap"])):  # fmt: skip
            if against in source and any(source[against][edge] for edge in ("low", "high")):  # else the same model
                out.print(
                    f"this adapter against the {MODELS[against]}: {Interval(**source[against]).text()} ({name})",
                    markup=False,
                )
