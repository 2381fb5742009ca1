"""Applies the rules to a finished run: promote, refuse, or neither yet. A pure function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from service.gate.evidence import Evidence
from service.gate.interval import Interval
from service.gate.quality import quality_of
from service.gate.rules import RULES, Finding

Decision = Literal["promote", "refuse", "inconclusive"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The decision on a candidate."""

    decision: Decision
    findings: tuple[Finding, ...]
    """What each rule found, in the order of the rules."""
    measured: dict[str, float]
    """Held-out loss by name: anchor, current, candidate."""
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    """Difference to current for `new` and `earlier` files. Slices with fewer than two files miss."""
    quality: Mapping[str, Any] = field(default_factory=dict)
    """For comparisons over many runs (service/gate/quality.py)."""
    overruled: str | None = None
    """Why a candidate that the rules promoted could not be published."""

    @property
    def promote(self) -> bool:
        """Whether the candidate is to be published."""
        return self.decision == "promote"

    @property
    def reasons(self) -> tuple[str, ...]:
        """What decided: the findings that forbid the promotion, or all that measured a loss."""
        if self.overruled is not None:
            return (self.overruled,)
        outcome = {"promote": "pass", "refuse": "fail", "inconclusive": "inconclusive"}[self.decision]
        named = [found for found in self.findings if found.outcome == outcome]
        if self.promote:
            named = [found for found in named if found.rule in ("gain", "loss", "earlier_current")]
        return tuple(f"{found.rule}: {found.text}" for found in named)

    def text(self) -> str:
        """Return the reasons in one line."""
        return "; ".join(self.reasons)

    def evaluation(self) -> dict[str, Any]:
        """Return what is stored with a published adapter."""
        return {"losses": self.measured, "intervals": {name: asdict(found) for name, found in self.intervals.items()}}

    def as_record(self) -> dict[str, Any]:
        """Return what is stored with the run, in its report."""
        return {
            "decision": self.decision,
            "promote": self.promote,
            "reasons": list(self.reasons),
            "rules": [found.as_record() for found in self.findings],
            "intervals": self.evaluation()["intervals"],
            "quality": self.quality,
        }

    def not_published(self, reason: str) -> Verdict:
        """Return the verdict on a candidate that could not be published after all."""
        return replace(self, decision="refuse", overruled=reason)


def judge(evidence: Evidence) -> Verdict:
    """Apply all rules. One failure refuses the candidate. Else one open question keeps it open."""
    findings = tuple(replace(rule(evidence), rule=name) for name, rule in RULES[evidence.gate.evidence].items())
    outcomes = {found.outcome for found in findings}
    decision: Decision = "refuse" if "fail" in outcomes else "inconclusive" if "inconclusive" in outcomes else "promote"
    return Verdict(
        decision=decision,
        findings=findings,
        measured=evidence.losses,
        intervals=_intervals(evidence) if evidence.measured else {},
        quality=quality_of(evidence),
    )


def _intervals(evidence: Evidence) -> dict[str, Interval]:
    found = {
        "new": evidence.interval(evidence.new, level=evidence.new_level),
        "earlier": evidence.interval(evidence.earlier),
    }
    return {name: interval for name, interval in found.items() if interval is not None}
