"""Sums an evaluation up: pass@k or exact match, with intervals over tasks, by slice. (no torch)"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from trainer.errors import UnusableInput
from trainer.evaluate.engines import Request
from trainer.evaluate.passk import pass_at_k
from trainer.evaluate.results import Judgement, Results, read_results
from trainer.evaluate.statistics import compare, estimate
from trainer.run_dir import read_json

KS = (1, 10, 100)
MAY_DIFFER = frozenset({"adapter", "served_name", "engine"})
"""Settings that two compared evaluations need not share."""

Scores = dict[str, list[Judgement]]


def summarize(
    results: Results, requests: Sequence[Request], slices: Mapping[str, Mapping[str, str]], *, judged: bool
) -> dict[str, Any]:
    """Return the summary of the answers to `requests`.

    Args:
        slices: name of a division → task id → slice, such as {"split": {"MBPP/11": "test"}}
        judged: whether there are verdicts
    """
    answers = results.read_generations()
    mine = [answers[(request.task_id, request.sample)] for request in requests]
    seconds = sum(answer.seconds for answer in mine)
    summary: dict[str, Any] = {
        "tasks": len({request.task_id for request in requests}),
        "samples": len(requests),
        "tokens": sum(answer.tokens for answer in mine),
        "generation_seconds": round(seconds, 3),
        "cut_at_max_tokens": sum(answer.finish == "length" for answer in mine),
        "executed": judged,
    }
    if judged:
        scores = _by_task(results, requests)
        summary["reasons"] = dict(
            Counter(_kind(verdict) for verdicts in scores.values() for verdict in verdicts).most_common()
        )
        for division, slice_of in slices.items():
            summary[division] = {
                name: measured({task: found for task, found in scores.items() if slice_of[task] == name})
                for name in sorted({slice_of[task] for task in scores})
            }
    return summary


def measured(scores: Scores) -> dict[str, Any]:
    """Return the measures of some tasks. pass@k only where every task has k samples."""
    fewest = min(len(verdicts) for verdicts in scores.values())
    found: dict[str, Any] = {"tasks": len(scores), "samples": sum(map(len, scores.values()))}
    infilling = all(verdict.similarity is not None for verdicts in scores.values() for verdict in verdicts)
    if infilling:
        found["exact_match"] = asdict(estimate([_mean([v.passed for v in verdicts]) for verdicts in scores.values()]))
        found["edit_similarity"] = asdict(estimate([_mean(_similarities(verdicts)) for verdicts in scores.values()]))
        return found
    for k in KS:
        if k <= fewest:
            found[f"pass@{k}"] = asdict(
                estimate(
                    [
                        pass_at_k(samples=len(verdicts), passed=sum(v.passed for v in verdicts), k=k)
                        for verdicts in scores.values()
                    ]
                )
            )
    return found


def against(results: Results, requests: Sequence[Request], other: Results) -> dict[str, Any]:
    """Compare with a finished evaluation of the same suite.

    Raises:
        UnusableInput: it has another suite or other settings, no verdicts, or no task in common.
    """
    read_results(other.root)
    mine, theirs = read_json(results.settings), read_json(other.settings)
    names = sorted(({*mine, *theirs}) - MAY_DIFFER)
    if changed := [name for name in names if mine.get(name) != theirs.get(name)]:
        raise UnusableInput(
            f"{other.root} cannot be compared, because it has other settings: "
            + "; ".join(f"{name} {theirs.get(name)!r} instead of {mine.get(name)!r}" for name in changed)
        )
    scores = _by_task(results, requests)
    others: Scores = {}
    for (task, sample), verdict in sorted(other.read_outcomes().items()):
        if task in scores and sample < len(scores[task]):
            others.setdefault(task, []).append(verdict)
    found = compare(_passed(scores), _passed(others))
    if found is None:
        raise UnusableInput(f"{other.root} has no verdict on these tasks. Evaluate it with --execute")
    compared = {"folder": str(other.root), "adapter": theirs.get("adapter"), "passed": asdict(found)}
    if all(verdict.similarity is not None for verdicts in others.values() for verdict in verdicts):
        near = compare(_near(scores), _near(others))
        assert near is not None
        compared["edit_similarity"] = {
            name: value for name, value in asdict(near).items() if name in ("tasks", "difference", "low", "high")
        }
    return compared


def _by_task(results: Results, requests: Sequence[Request]) -> Scores:
    verdicts = results.read_outcomes()
    scores: Scores = {}
    for request in sorted(requests, key=lambda request: request.sample):
        scores.setdefault(request.task_id, []).append(verdicts[(request.task_id, request.sample)])
    return scores


def _passed(scores: Scores) -> dict[str, list[float]]:
    return {task: [float(verdict.passed) for verdict in verdicts] for task, verdicts in scores.items()}


def _near(scores: Scores) -> dict[str, list[float]]:
    return {task: _similarities(verdicts) for task, verdicts in scores.items()}


def _similarities(verdicts: Sequence[Judgement]) -> list[float]:
    return [verdict.similarity or 0.0 for verdict in verdicts]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _kind(verdict: Judgement) -> str:
    """The reason without what belongs to one task: the name of an exception, or the sentence."""
    if verdict.passed:
        return "passed"
    found = re.match(r"(?:the candidate raised )?(\w*(?:Error|Exception|Interrupt|Exit|Iteration))\b", verdict.reason)
    return found[1] if found else re.split(r"[:(`]", verdict.reason)[0].strip()[:80]
