"""What an alert says: one sentence with stream, run and reason, and the page's address."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from service.web.board import Ending, Snapshot

MOST_REASON_CHARS = 600
Severity = Literal["good", "warning", "bad"]

VERDICTS: dict[str, tuple[str, Severity, str]] = {
    "promote": ("promoted", "good", "was promoted and published as version {run}"),
    "refuse": ("refused", "warning", "was refused"),
    "inconclusive": ("inconclusive", "warning", "has too little evidence, and the next run continues it"),
    "failed": ("failed", "bad", "was given up, and its files are free again"),
}
"""Kind, severity and words of each way in which a run ends."""
SEVERITIES: dict[str, Severity] = {"paused": "bad", "stuck": "bad", "disk": "bad", "degraded": "warning"}
"""Severity of each kind of trouble."""


@dataclass(frozen=True, kw_only=True)
class Alert:
    """One message."""

    kind: str
    """One of ALERT_KINDS."""
    severity: Severity
    title: str
    text: str
    topic: str
    """Alerts with the same topic say the same. The rate limit compares it."""
    cause: str | None = None
    """The trouble that it is about. None: it is about a run."""

    def with_more(self, text: str) -> Alert:
        """Return the alert with another sentence at its end."""
        return replace(self, text=f"{self.text} {text}")


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """Something that is wrong for a while, until it ends."""

    kind: str
    reason: str


def about_run(snapshot: Snapshot, ending: Ending, page: str | None) -> Alert:
    """Tell how a run ended."""
    kind, severity, words = VERDICTS[ending.decision]
    did = words.format(run=ending.run_id)
    reason = shortened(ending.reason.removeprefix(f"run {ending.run_id} failed: "))
    return Alert(
        kind=kind,
        severity=severity,
        title=f"CodeLupe {snapshot.stream}: run {ending.run_id} {kind}",
        text=_with_page(f"Run {ending.run_id} of the stream {snapshot.stream} {did}: {reason}.", page),
        topic=topic_of(shortened(ending.reason)) if kind == "failed" else f"run {ending.run_id} {kind}",
    )


def about_trouble(snapshot: Snapshot, cause: str, trouble: Trouble, page: str | None) -> Alert:
    """Tell that something is wrong."""
    reason = shortened(trouble.reason)
    return Alert(
        kind=trouble.kind,
        severity=SEVERITIES[trouble.kind],
        title=f"CodeLupe {snapshot.stream}: {trouble.kind} ({cause})",
        text=_with_page(f"The service of the stream {snapshot.stream} has a problem ({cause}): {reason}.", page),
        topic=topic_of(reason),
        cause=cause,
    )


def about_end(snapshot: Snapshot, cause: str, trouble: Trouble, seconds: float, page: str | None) -> Alert:
    """Tell that a trouble is over."""
    now = shortened(snapshot.health()[1])
    said = f"The problem of the stream {snapshot.stream} ({cause}) is over after {duration(seconds)}. Now: {now}."
    return Alert(
        kind=trouble.kind,
        severity="good",
        title=f"CodeLupe {snapshot.stream}: over ({cause})",
        text=_with_page(said, page),
        topic=f"over {cause}",
        cause=cause,
    )


def topic_of(reason: str) -> str:
    """Return the reason without its numbers: 3.1 GB free and 3.0 GB free are the same trouble."""
    return re.sub(r"\d+(?:\.\d+)?", "#", reason)


def shortened(reason: str) -> str:
    """Return the reason on one line, without a full stop, and not endless."""
    line = " ".join(reason.split()).rstrip(".")
    return line if len(line) <= MOST_REASON_CHARS else line[: MOST_REASON_CHARS - 1] + "…"


def duration(seconds: float) -> str:
    """Format a time span for people."""
    for size, name in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = round(seconds / size)
            return f"{count} {name}{'' if count == 1 else 's'}"
    return f"{seconds:.0f} seconds"


def _with_page(text: str, page: str | None) -> str:
    return f"{text} {page}" if page else text
