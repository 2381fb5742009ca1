"""What a verdict remembers of the candidate's quality, for comparisons over many runs: losses by slice, and pass@1."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from service.gate.evidence import MODELS, Evidence
from trainer.records import SampleEvaluation


def quality_of(evidence: Evidence) -> dict[str, Any]:
    """Return `slices` (new, earlier, fim: loss by model in nats per token) and `suites` (share of solved tasks).

    A slice without samples is left out, and a loss that is not finite too.
    """
    slices = {
        "new": evidence.new,
        "earlier": evidence.earlier,
        "fim": [sample for sample in evidence.samples if sample.kind.startswith("fim")],
    }
    return {
        "slices": {name: _losses(samples) for name, samples in slices.items() if samples},
        "suites": {name: _solved(found) for name, found in (evidence.examination or {}).get("suites", {}).items()},
    }


def _losses(samples: Sequence[SampleEvaluation]) -> dict[str, float]:
    tokens = sum(sample.tokens for sample in samples)
    losses = {name: sum(sample.loss[name] for sample in samples) / tokens for name in MODELS}
    return {name: loss for name, loss in losses.items() if math.isfinite(loss)}


def _solved(found: Mapping[str, Any]) -> dict[str, float]:
    """Reports of earlier versions have only the difference."""
    return {name: found[name] for name in ("current", "candidate") if isinstance(found.get(name), float)}
