"""The rules of the gate, one function each. Each says pass, fail or inconclusive, with its numbers.

A rule sees the evidence only. It reads no file and no database.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from service.gate.evidence import Evidence
from service.gate.interval import Interval

Outcome = Literal["pass", "fail", "inconclusive"]
SAME_LOSS = 0.02
"""How much a sample's loss may differ between two processes, in nats per token. 16-bit kernels round differently."""
OUTCOMES: tuple[Outcome, ...] = ("pass", "fail", "inconclusive")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a rule found."""

    outcome: Outcome
    text: str
    """What was measured, and the limit."""
    numbers: Mapping[str, float | int] = field(default_factory=dict)
    rule: str = ""
    """Name of the rule. The table fills it in."""

    def as_record(self) -> dict[str, Any]:
        """Return what is stored with the run."""
        return asdict(self)


# --- what the run is -----------------------------------------------------------------------------------------


def complete(evidence: Evidence) -> Finding:
    """The report belongs to this run, rows were trained on, and all losses are numbers."""
    report = evidence.report
    against = []
    if report.get("run_id") != evidence.run_id:
        against.append(f"the report belongs to run {report.get('run_id')}, not to run {evidence.run_id}")
    if (report.get("rows") or {}).get("trained", 0) < 1:
        against.append("no row was trained before the best step")
    if (report.get("held_out") or {}).get("samples", 0) < 1:
        against.append("there was no held-out sample to measure on")
    if missing := [name for name, loss in evidence.losses.items() if not math.isfinite(loss)]:
        against.append(f"held-out loss of {', '.join(missing)} is not a finite number")
    return Finding(
        outcome="fail" if against else "pass",
        text="; ".join(against) or f"{report['rows']['trained']} rows trained",
        numbers={name: loss for name, loss in evidence.losses.items() if math.isfinite(loss)},
    )


def separate(evidence: Evidence) -> Finding:
    """No judged row was trained on, neither itself nor a duplicate of it."""
    if evidence.leaks:
        more = f" and {len(evidence.leaks) - 1} more" if len(evidence.leaks) > 1 else ""
        return Finding(outcome="fail", text=f"{evidence.leaks[0]}{more}", numbers={"rows": len(evidence.leaks)})
    return Finding(outcome="pass", text="no judged row was trained on", numbers={"rows": 0})


# --- what the adapter is -------------------------------------------------------------------------------------


def whole(evidence: Evidence) -> Finding:
    """The adapter is what the run wrote, all weights are finite, and a fresh process measures the same losses."""
    examination = evidence.examination
    if examination is None:
        return _not_examined(evidence)
    if "failure" in examination:
        return Finding(outcome="fail", text=f"the adapter cannot be used: {examination['failure']}")
    written, found = (evidence.report.get("adapter") or {}).get("manifest_sha256"), examination.get("manifest_sha256")
    if written and found and written != found:
        return Finding(outcome="fail", text="the adapter is not the one that the run wrote: its manifest differs")
    if names := examination["weights"]["not_finite"]:
        return Finding(
            outcome="fail",
            text=f"not finite: {names[0]}{f' and {len(names) - 1} more tensors' if len(names) > 1 else ''}",
            numbers={"not_finite": len(names)},
        )
    again = examination.get("measured_again", {"samples": 0, "largest_difference": 0.0})
    difference = _number(again["largest_difference"])
    numbers = {"not_finite": 0, "samples": again["samples"], "limit": SAME_LOSS}
    if not difference <= SAME_LOSS:
        text = f"a fresh process measures losses that differ by {difference:.3f}; the limit is {SAME_LOSS:g}"
        return Finding(outcome="fail", text=text, numbers=numbers)
    text = f"a fresh process loaded it and measured the same losses on {again['samples']} samples"
    return Finding(outcome="pass", text=text, numbers=numbers | {"difference": difference})


def changed(evidence: Evidence) -> Finding:
    """The adapter differs from what the run started from, and its norm is bounded."""
    found, limit = evidence.examination or {}, evidence.gate.largest_norm
    if "norm" not in found:
        return _not_used(evidence)
    norm, weights = _number(found["norm"]["largest"]), found["weights"]
    numbers = {"changed": weights["changed"], "tensors": weights["tensors"], "limit": limit}
    if weights["changed"] == 0:
        return Finding(outcome="fail", text="the adapter is equal to what the run started from", numbers=numbers)
    if not norm <= limit:
        text = f"the change of {found['norm']['module']} is {norm:.3g} of the base's norm; the limit is {limit:g}"
        return Finding(outcome="fail", text=text, numbers=numbers)
    count = f"{weights['changed']} of {weights['tensors']} tensors changed"
    text = f"{count}; the largest change is {norm:.3f} of the base's norm, and the limit is {limit:g}"
    return Finding(outcome="pass", text=text, numbers=numbers | {"norm": norm})


def answers(evidence: Evidence) -> Finding:
    """The adapter answers held-out prompts without control tokens, and hardly loops more often than the base."""
    found = evidence.examination or {}
    if "generation" not in found:
        return _not_used(evidence)
    prompts, ours, base = (found["generation"][name] for name in ("prompts", "candidate", "anchor"))
    numbers = {
        "prompts": prompts, "leaking": ours["leaking"], "looping": ours["looping"], "base_looping": base["looping"],
    }  # fmt: skip
    if ours["leaking"] > base["leaking"]:
        return Finding(
            outcome="fail", text=f"{ours['leaking']} of {prompts} answers contain a control token", numbers=numbers
        )
    text = f"{ours['looping']} of {prompts} answers loop, {base['looping']} of the base's"
    if ours["looping"] - base["looping"] > evidence.gate.more_loops * prompts:
        return Finding(outcome="fail", text=text, numbers=numbers)
    return Finding(outcome="pass", text=f"no control token in {prompts} answers; {text}", numbers=numbers)


def suites(evidence: Evidence) -> Finding:
    """In no suite does the candidate certainly solve fewer tasks than the current adapter."""
    found = (evidence.examination or {}).get("suites", {})
    numbers: dict[str, float | int] = {}
    worse: list[str] = []
    said: list[str] = []
    for name, result in found.items():
        text = (
            f"{name}: {result['first_only']} tasks only the candidate solves, {result['second_only']} only current, "
            f"p = {result['p_value']:.3f}"
        )
        numbers |= {f"{name} difference": result["difference"], f"{name} p": result["p_value"]}
        certain = result["p_value"] < 1 - evidence.gate.confidence
        (worse if result["difference"] < 0 and certain else said).append(text)
    if worse:
        return Finding(outcome="fail", text="; ".join(worse), numbers=numbers)
    return Finding(outcome="pass", text="; ".join(said) or "no suite was executed", numbers=numbers)


def _number(value: float | None) -> float:
    """A measured number. The examination writes null for one that is not finite."""
    return math.nan if value is None else float(value)


def _not_examined(evidence: Evidence) -> Finding:
    if not evidence.gate.examination:
        return Finding(outcome="pass", text="not examined: gate.examination is off")
    return Finding(outcome="fail", text="the adapter was not examined")


def _not_used(evidence: Evidence) -> Finding:
    """For a rule about an adapter that could not be loaded. Another rule says why."""
    if evidence.examination is None:
        return _not_examined(evidence)
    return Finding(outcome="fail", text="not known, because the adapter cannot be used")


# --- what it learned and what it forgot ----------------------------------------------------------------------


def loss(evidence: Evidence) -> Finding:
    """With `evidence: point`: the loss on all judged files is at most `tolerance` above the current adapter's."""
    if not evidence.measured:
        return _not_measured()
    current, candidate = evidence.losses["current"], evidence.losses["candidate"]
    worse, limit = candidate > current + evidence.gate.tolerance, evidence.gate.tolerance
    said = "better by" if candidate <= current else "worse by" if worse else "within tolerance, worse by"
    return Finding(
        outcome="fail" if worse else "pass",
        text=f"held-out loss {candidate:.4f} against current's {current:.4f} ({said} {abs(current - candidate):.4f})"
        + (f"; the tolerance is {limit:g}" if worse else ""),
        numbers={"candidate": candidate, "current": current, "tolerance": limit},
    )


def gain(evidence: Evidence) -> Finding:
    """On new files, the whole interval is at least `least_gain` better than the current adapter."""
    if not evidence.measured:
        return _not_measured()
    if (evidence.report.get("held_out") or {}).get("disjoint") is False:
        return _open("one file chose the best step and would judge it too", evidence)
    found = evidence.interval(evidence.new, level=evidence.new_level)
    files, least = found.files if found else _files(evidence), evidence.gate.least_files
    if found is None or files < least:
        return _open(f"{files} new files judge; at least {least} are needed", evidence, files=files)
    limit = evidence.gate.least_gain
    numbers = {**_numbers(found), "look": evidence.looks, "least_gain": limit}
    text = f"on new files {found.text()}"
    if found.high < -limit:
        return Finding(outcome="pass", text=text, numbers=numbers)
    if found.low > 0:
        return Finding(outcome="fail", text=text, numbers=numbers)
    return _open(f"{text}. That may be less than the least gain, {limit:g}", evidence, **numbers)


def earlier_current(evidence: Evidence) -> Finding:
    """The candidate is not worse than the current adapter on earlier files, beyond the tolerance."""
    return _not_worse(evidence, "current")


def earlier_anchor(evidence: Evidence) -> Finding:
    """The candidate is not worse than the base alone on earlier files, beyond the tolerance."""
    return _not_worse(evidence, "anchor")


def languages(evidence: Evidence) -> Finding:
    """In no language is the candidate certainly worse than the current adapter, beyond the language's tolerance."""
    if not evidence.measured:
        return _not_measured()
    found = {name: evidence.interval(samples) for name, samples in evidence.languages()}
    known = {name: interval for name, interval in found.items() if interval is not None}
    limit = evidence.gate.language_tolerance
    numbers = {name: interval.difference for name, interval in known.items()}
    worse = {name: one for name, one in known.items() if one.low > 0 and one.difference > limit}
    if worse:
        text = "; ".join(f"{name}: {one.text()}" for name, one in worse.items())
        return Finding(outcome="fail", text=f"{text}. At most {limit:g} worse is allowed", numbers=numbers)
    said = ", ".join(
        f"{name} {'better' if difference <= 0 else 'worse'} by {abs(difference):.4f}"
        for name, difference in numbers.items()
    )
    return Finding(outcome="pass", text=said or "no language has two judged files", numbers=numbers)


def _not_worse(evidence: Evidence, against: str) -> Finding:
    if not evidence.measured:
        return _not_measured()
    samples, limit = evidence.earlier, evidence.gate.tolerance
    if not samples:
        return Finding(outcome="pass", text="no earlier run held files out")
    found = evidence.interval(samples, against=against)
    if found is None:
        return _open("only one earlier file judges", evidence, files=1)
    numbers = {**_numbers(found), "tolerance": limit}
    than = {"current": "the current adapter", "anchor": "the base alone"}[against]
    text = f"on earlier files, against {than}: {found.text()}. At most {limit:g} worse is allowed"
    if found.high <= limit:
        return Finding(outcome="pass", text=text, numbers=numbers)
    if found.low > 0 and found.difference > limit:
        return Finding(outcome="fail", text=text, numbers=numbers)
    return _open(f"{text}, and that lies inside the interval", evidence, **numbers)


def _open(text: str, evidence: Evidence, **numbers: float | int) -> Finding:
    """Too little evidence. After too many runs in a row, that is a reason to refuse."""
    longest = evidence.gate.longest_trunk
    if evidence.looks >= longest:
        return Finding(
            outcome="fail", text=f"{text}. No evidence after {evidence.looks} runs in a row", numbers=numbers
        )
    return Finding(outcome="inconclusive", text=text, numbers=numbers)


def _not_measured() -> Finding:
    return Finding(outcome="fail", text="not known, because a loss is not a finite number")


def _numbers(found: Interval) -> dict[str, float | int]:
    return asdict(found)


def _files(evidence: Evidence) -> int:
    return len({file_id for sample in evidence.new for file_id in sample.file_ids})


# --- the table -----------------------------------------------------------------------------------------------

Rule = Callable[[Evidence], Finding]

ALWAYS: dict[str, Rule] = {
    "complete": complete,
    "separate": separate,
    "whole": whole,
    "changed": changed,
    "answers": answers,
    "suites": suites,
}
RULES: dict[str, dict[str, Rule]] = {
    "interval": ALWAYS
    | {
        "gain": gain,
        "earlier_current": earlier_current,
        "earlier_anchor": earlier_anchor,
        "languages": languages,
    },
    "point": ALWAYS | {"loss": loss},
}
"""The rules by `gate.evidence`, in the order in which they are shown."""
RULE_NAMES = tuple(dict.fromkeys(name for rules in RULES.values() for name in rules))
