"""Defines all metrics once, for JSON and Prometheus (service/web/exposition.py)."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

from service.web.board import Snapshot
from service.web.state import State

Value = float | int
Reading = Iterable[tuple[tuple[str, ...], Value | None]]
"""Pairs of label values and value. None values are omitted."""

OUTCOMES = ("pass", "fail", "inconclusive")
"""Of a rule of the gate."""
RUN_OUTCOMES = ("published", "refused", "inconclusive", "failed", "returned")
JUDGED = ("published", "refused", "inconclusive")
ALERT_OUTCOMES = ("delivered", "failed", "dropped", "held")
SETTLED = ("trained", "held_out", "rejected", "quarantined")


@dataclass(frozen=True, kw_only=True)
class Definition:
    """One metric: its name without prefix, and how to read it from a snapshot."""

    name: str
    """Without the prefix, and without `_total` for a counter."""
    kind: Literal["gauge", "counter"]
    help: str
    labels: tuple[str, ...] = ()
    read: Callable[[Snapshot], Reading]


def _one(value: Value | None) -> Reading:
    return [((), value)]


def _by(values: Mapping[str, Value] | None) -> Reading:
    return [((key,), value) for key, value in (values or {}).items()]


def _live(name: str, scale: float = 1.0) -> Callable[[Snapshot], Reading]:
    """Return how to read a value of the live run. It is absent between runs, and if the machine does not tell it."""

    def read(snapshot: Snapshot) -> Reading:
        value = getattr(snapshot.progress, name, None)
        return _one(None if value is None else value * scale)

    return read


def _counts(values: Mapping[str, int], known: tuple[str, ...]) -> Reading:
    """Return all known labels, including zeros, so that rates work from the first event on."""
    return [((key,), values.get(key, 0)) for key in known]


def _rules(verdict: Mapping[str, Any] | None) -> Reading:
    return [
        ((rule["rule"], outcome), int(rule["outcome"] == outcome))
        for rule in (verdict or {}).get("rules", ())
        for outcome in OUTCOMES
    ]


def _differences(verdict: Mapping[str, Any] | None) -> Reading:
    return [
        ((files, bound), interval[bound])
        for files, interval in (verdict or {}).get("intervals", {}).items()
        for bound in ("difference", "low", "high")
    ]


METRICS: tuple[Definition, ...] = (
    Definition(
        name="state",
        kind="gauge",
        help="1 for the service's current state, 0 for the others.",
        labels=("state",),
        read=lambda s: [((state.value,), int(s.state == state)) for state in State],
    ),
    Definition(
        name="healthy",
        kind="gauge",
        help="1 healthy, 0.5 degraded, 0 unhealthy.",
        read=lambda s: _one({"healthy": 1.0, "degraded": 0.5, "unhealthy": 0.0}[s.health()[0]]),
    ),
    Definition(
        name="runs",
        kind="counter",
        help="Ended runs, by outcome.",
        labels=("outcome",),
        read=lambda s: _counts(s.totals.runs if s.totals else {}, RUN_OUTCOMES),
    ),
    Definition(
        name="rows",
        kind="counter",
        help="Rows settled, by disposition.",
        labels=("disposition",),
        read=lambda s: _counts(s.totals.rows if s.totals else {}, SETTLED),
    ),
    Definition(
        name="learning_rows",
        kind="gauge",
        help="Rows that an open candidate has learned. A later verdict settles them.",
        read=lambda s: _one(s.totals.rows.get("learning", 0) if s.totals else None),
    ),
    Definition(
        name="gate_rule",
        kind="gauge",
        help="1 for what each rule of the gate found in the last run that was judged, 0 for the other outcomes.",
        labels=("rule", "outcome"),
        read=lambda s: _rules(s.last_verdict),
    ),
    Definition(
        name="gate_difference",
        kind="gauge",
        help="Candidate's loss minus current's in the last judged run, in nats per token: estimate, low and high.",
        labels=("files", "bound"),
        read=lambda s: _differences(s.last_verdict),
    ),
    Definition(
        name="rejected_rows",
        kind="counter",
        help="Rows settled as rejected, by reason.",
        labels=("reason",),
        read=lambda s: _by(s.totals.rejected if s.totals else None),
    ),
    Definition(
        name="pending_rows",
        kind="gauge",
        help="Eligible rows waiting for a claim: new rows as of the last poll, older rows as of their last sweep.",
        read=lambda s: _one(s.pending.rows if s.pending else None),
    ),
    Definition(
        name="ineligible_rows",
        kind="gauge",
        help="Ineligible rows, by reason (counted at the same times as pending rows).",
        labels=("reason",),
        read=lambda s: _by(s.pending.ineligible if s.pending else None),
    ),
    Definition(
        name="oldest_pending_row_age_seconds",
        kind="gauge",
        help="Age of the oldest pending row; 0 if there is none.",
        read=lambda s: _one((s.pending.oldest_age_seconds or 0.0) if s.pending else None),
    ),
    Definition(
        name="oldest_sweep_age_seconds",
        kind="gauge",
        help="Time since the last sweep of the source range that was swept longest ago.",
        read=lambda s: _one(s.pending.oldest_sweep_age_seconds if s.pending else None),
    ),
    Definition(
        name="unknown_ranges",
        kind="gauge",
        help="Source ranges not swept since rows in them were claimed or returned.",
        read=lambda s: _one(s.pending.unknown_ranges if s.pending else None),
    ),
    Definition(
        name="loss",
        kind="gauge",
        help="Last loss in nats per token: train, eval (candidate, held out), current and anchor (held out).",
        labels=("split",),
        read=lambda s: _by(s.losses),
    ),
    Definition(
        name="step",
        kind="gauge",
        help="Optimizer step of the live run.",
        read=lambda s: _one(s.progress.step if s.progress else None),
    ),
    Definition(
        name="steps",
        kind="gauge",
        help="Maximum number of optimizer steps of the live run.",
        read=lambda s: _one(s.progress.steps_total if s.progress else None),
    ),
    Definition(
        name="learning_rate",
        kind="gauge",
        help="Learning rate of the last step.",
        read=lambda s: _one(s.progress.learning_rate if s.progress else None),
    ),
    Definition(
        name="grad_norm",
        kind="gauge",
        help="Gradient norm of the last step, before clipping.",
        read=lambda s: _one(s.progress.grad_norm if s.progress else None),
    ),
    Definition(
        name="tokens_per_second",
        kind="gauge",
        help="Tokens per second in the last step.",
        read=lambda s: _one(s.progress.tokens_per_second if s.progress else None),
    ),
    Definition(
        name="gpu_memory_used_bytes",
        kind="gauge",
        help="GPU memory used by the trainer; 0 without a GPU or a run.",
        read=lambda s: _one(s.progress.gpu_memory_bytes if s.progress else 0),
    ),
    Definition(
        name="trained_tokens",
        kind="counter",
        help="Tokens trained into the published adapters.",
        read=lambda s: _one(s.totals.trained_tokens if s.totals else None),
    ),
    Definition(
        name="last_success_timestamp_seconds",
        kind="gauge",
        help="When an adapter was last published (Unix time).",
        read=lambda s: _one(s.totals.last_success_at.timestamp() if s.totals and s.totals.last_success_at else None),
    ),
    Definition(
        name="run_duration_seconds",
        kind="gauge",
        help="Duration of the last finished run, by phase.",
        labels=("phase",),
        read=lambda s: _by(s.phase_seconds),
    ),
    Definition(
        name="adapter_version",
        kind="gauge",
        help="Version of the current adapter.",
        read=lambda s: _one(s.current_version),
    ),
    Definition(
        name="served_version",
        kind="gauge",
        help="Version that vLLM serves; absent without a server or an answer.",
        read=lambda s: _one(s.served_version),
    ),
    Definition(
        name="disk_free_bytes",
        kind="gauge",
        help="Free space on the disk of CODELUPE_HOME.",
        read=lambda s: _one(s.disk_free_bytes),
    ),
    Definition(
        name="heartbeat_age_seconds",
        kind="gauge",
        help="Seconds since the main loop's last heartbeat.",
        read=lambda s: _one(round(s.heartbeat_age_seconds(), 3)),
    ),
    Definition(
        name="build_info",
        kind="gauge",
        help="Always 1; the labels describe the running version.",
        labels=("version", "python", "model", "stream"),
        read=lambda s: [((version("codelupe"), platform.python_version(), s.model, s.stream), 1)],
    ),
    Definition(
        name="gpu_energy_joules",
        kind="counter",
        help="Energy that the cards have used for training since the service started; absent without a card.",
        read=lambda s: _one(s.gpu_energy_joules),
    ),
    *(
        Definition(name=name, kind="gauge", help=f"Of the live run: {help}. Absent between runs.", read=read)
        for name, help, read in (
            ("gpu_utilization_ratio", "how busy its cards are, from 0 to 1", _live("gpu_utilization")),
            ("gpu_card_memory_used_bytes", "memory used on its cards, by all processes", _live("gpu_card_used_bytes")),
            ("gpu_memory_total_bytes", "memory of its cards", _live("gpu_card_total_bytes")),
            ("gpu_power_watts", "power of its cards", _live("gpu_power_watts")),
            ("gpu_temperature_celsius", "temperature of its hottest card", _live("gpu_temperature_celsius")),
            ("trainer_memory_bytes", "resident memory of the trainer", _live("process_memory_bytes")),
            ("trainer_cpu_ratio", "processors that the trainer keeps busy", _live("process_cpu_percent", 0.01)),
        )
    ),
    Definition(
        name="min_new_files",
        kind="gauge",
        help="Number of pending rows that starts a run (MIN_NEW_FILES).",
        read=lambda s: _one(s.min_new_files),
    ),
    Definition(
        name="gate_refusals_in_a_row",
        kind="gauge",
        help="How many of the last verdicts refused a candidate, without another verdict in between.",
        read=lambda s: _one(s.totals.refusals_in_a_row if s.totals else None),
    ),
    Definition(
        name="loss_not_finite",
        kind="counter",
        help="Losses and gradients that were NaN or infinite since the service started.",
        read=lambda s: _one(s.non_finite),
    ),
    Definition(
        name="trainer_event_age_seconds",
        kind="gauge",
        help="Time since the trainer's last event; absent without a trainer.",
        read=lambda s: _one(s.event_age_seconds()),
    ),
    Definition(
        name="disk_needed_bytes",
        kind="gauge",
        help="Free space that a claim requires: twice the size of a run.",
        read=lambda s: _one(s.disk_needed_bytes),
    ),
    Definition(
        name="alerts",
        kind="counter",
        help="Alerts since the service started: delivered, failed, dropped (each by target) or held by the rate limit.",
        labels=("outcome",),
        read=lambda s: _counts(s.alerts, ALERT_OUTCOMES),
    ),
)
