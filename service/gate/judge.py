"""Compares the candidate with the current adapter: promote or refuse, with reasons. A pure function."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from trainer.recipe import Gate


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The decision on a candidate."""

    promote: bool
    reasons: tuple[str, ...]
    """Why the candidate is promoted, or all reasons against it."""
    measured: dict[str, float]
    """Held-out loss by name: anchor, current, candidate."""

    def text(self) -> str:
        """Return the reasons in one line."""
        return "; ".join(self.reasons)


def judge(report: dict[str, Any], gate: Gate, *, run_id: int) -> Verdict:
    """Judge a finished run. It measured both losses on the same held-out rows."""
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
