"""Compares the candidate with the current adapter: promote or refuse, with reasons. A pure function."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from service.gate.interval import Interval, loss_interval
from trainer.recipe import Gate
from trainer.records import SampleEvaluation


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The decision on a candidate."""

    promote: bool
    reasons: tuple[str, ...]
    """Why the candidate is promoted, or all reasons against it."""
    measured: dict[str, float]
    """Held-out loss by name: anchor, current, candidate."""
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    """Difference to current for `new` files of this run and `earlier` ones. Slices with fewer than two files miss."""

    def evaluation(self) -> dict[str, Any]:
        """Return what is stored with a published adapter."""
        return {"losses": self.measured, "intervals": {name: asdict(found) for name, found in self.intervals.items()}}

    def as_record(self) -> dict[str, Any]:
        """Return what is stored with the run, in its report."""
        return {"promote": self.promote, "reasons": list(self.reasons), "intervals": self.evaluation()["intervals"]}

    def text(self) -> str:
        """Return the reasons and the intervals in one line."""
        return "; ".join([*self.reasons, *(f"{name} files: {found.text()}" for name, found in self.intervals.items())])


def judge(report: dict[str, Any], gate: Gate, *, run_id: int, samples: Sequence[SampleEvaluation] = ()) -> Verdict:
    """Judge a finished run. It measured both losses on the same held-out rows.

    Args:
        samples: the run's evaluation.jsonl; empty for a run of an earlier version
    """
    verdict = _judge(report, gate, run_id)
    return replace(verdict, intervals=_intervals(samples)) if math.isfinite(sum(verdict.measured.values())) else verdict


def _judge(report: dict[str, Any], gate: Gate, run_id: int) -> Verdict:
    evaluation = report.get("evaluation") or {}
    measured = {name: _loss(evaluation, name) for name in ("anchor", "current", "candidate")}
    against = list(_objections(report, measured, gate, run_id))
    if against:
        return Verdict(promote=False, reasons=tuple(against), measured=measured)
    gain = measured["current"] - measured["candidate"]
    reason = (
        f"held-out loss {measured['candidate']:.4f} against current's {measured['current']:.4f} "
        f"({'better by' if gain >= 0 else 'within tolerance, worse by'} {abs(gain):.4f})"
    )
    return Verdict(promote=True, reasons=(reason,), measured=measured)


def _intervals(samples: Sequence[SampleEvaluation]) -> dict[str, Interval]:
    slices = {
        "new": [sample for sample in samples if sample.fresh],
        "earlier": [sample for sample in samples if not sample.fresh],
    }
    found = {name: loss_interval(members) for name, members in slices.items()}
    return {name: interval for name, interval in found.items() if interval is not None}


def _loss(evaluation: dict[str, Any], name: str) -> float:
    value = (evaluation.get(name) or {}).get("loss")
    return float(value) if isinstance(value, int | float) else math.nan


def _objections(report: dict[str, Any], measured: dict[str, float], gate: Gate, run_id: int) -> list[str]:
    against = []
    if report.get("run_id") != run_id:
        against.append(f"the report belongs to run {report.get('run_id')}, not to run {run_id}")
    if (report.get("rows") or {}).get("trained", 0) < 1:
        against.append("no row was trained before the best step")
    if (report.get("held_out") or {}).get("samples", 0) < 1:
        against.append("there was no held-out sample to measure on")
    missing = [name for name, loss in measured.items() if not math.isfinite(loss)]
    if missing:
        against.append(f"held-out loss of {', '.join(missing)} is not a finite number")
    elif measured["candidate"] > measured["current"] + gate.tolerance:
        against.append(
            f"held-out loss {measured['candidate']:.4f} is worse than current's {measured['current']:.4f} "
            f"by more than the tolerance of {gate.tolerance:g}"
        )
    return against
