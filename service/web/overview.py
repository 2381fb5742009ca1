"""The ten seconds: one sentence, and the numbers of this moment. All of it is in memory."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from service.web.board import Progress, Snapshot, Status
from service.web.pipeline import Stage, pipeline

STATUS_WORDS = {"healthy": "Healthy.", "degraded": "Needs attention.", "unhealthy": "Not working."}


@dataclass(frozen=True, kw_only=True)
class Overview:
    """The state at this moment. Times are Unix times in seconds."""

    time: float
    sentence: str
    status: Status
    reason: str
    troubles: Mapping[str, str]
    state: str
    state_since: float
    held_since: float | None
    stream: str
    model: str
    current_version: int | None
    current_published_at: float | None
    served_version: int | None
    min_new_files: int
    run: Progress | None
    losses: Mapping[str, float]
    disk_free_bytes: int | None
    pipeline: list[Stage]
    can_act: bool
    """Whether a token is set, so that POSTs can be allowed."""
    poll_seconds: float
    """When to ask again. It grows with the number of pages that are open."""


def overview(snapshot: Snapshot, *, can_act: bool, poll_seconds: float) -> Overview:
    """Return what the page shows at its top."""
    status, reason = snapshot.health()
    published = snapshot.current_published_at
    return Overview(
        time=time.time(),
        sentence=sentence(snapshot),
        status=status,
        reason=reason,
        troubles=dict(snapshot.troubles),
        state=snapshot.state,
        state_since=snapshot.state_since,
        held_since=snapshot.held_since,
        stream=snapshot.stream,
        model=snapshot.model,
        current_version=snapshot.current_version,
        current_published_at=published.timestamp() if published else None,
        served_version=snapshot.served_version,
        min_new_files=snapshot.min_new_files,
        run=snapshot.progress,
        losses=dict(snapshot.losses),
        disk_free_bytes=snapshot.disk_free_bytes,
        pipeline=pipeline(snapshot),
        can_act=can_act,
        poll_seconds=poll_seconds,
    )


def sentence(snapshot: Snapshot) -> str:
    """Return the state in one line: "Healthy. Training run 42, 63 %, adapter v41 live for 2 h, 118 files waiting."."""
    status, reason = snapshot.health()
    parts = [_doing(snapshot), _then(snapshot), live_adapter(snapshot)]
    if snapshot.pending is not None and snapshot.state != "waiting":
        parts.append(f"{counted(snapshot.pending.rows, 'file')} waiting")
    said = f"{STATUS_WORDS[status]} {', '.join(part for part in parts if part)}."
    return said if status == "healthy" else f"{said} {reason[:1].upper()}{reason[1:].rstrip('.')}."


def _doing(snapshot: Snapshot) -> str:
    match snapshot.state:
        case "waiting" if snapshot.pending is not None:
            return f"Waiting: {snapshot.pending.rows:,} of {counted(snapshot.min_new_files, 'new file')}"
        case "training" if snapshot.progress is not None:
            return _training(snapshot.progress)
        case "judging" if snapshot.progress is not None:
            return f"Judging run {snapshot.progress.run_id}"
        case "on_hold":
            return "Paused on request"
        case "standby":
            return "Another service does this work"
    return snapshot.state.replace("_", " ").capitalize()


def _then(snapshot: Snapshot) -> str:
    is_working = snapshot.state in ("claiming", "training", "judging")
    return "then it pauses on request" if is_working and snapshot.held_since is not None else ""


def _training(progress: Progress) -> str:
    if not progress.steps_total:
        return f"Training run {progress.run_id}, preparing"
    share = progress.step / progress.steps_total
    left = f", {duration(progress.seconds_left)} left" if progress.seconds_left else ""
    return f"Training run {progress.run_id}, {share:.0%}{left}".replace("%", " %")


def live_adapter(snapshot: Snapshot) -> str:
    """Return which adapter is live, and for how long. Empty: this is not known yet."""
    if snapshot.current_version is None:
        return "no adapter yet" if snapshot.current_known else ""
    published = snapshot.current_published_at
    since = f" for {duration(time.time() - published.timestamp())}" if published else ""
    return f"adapter v{snapshot.current_version} live{since}"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: "1 file", "1,200 files"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Return a duration in its two largest units at most: "45 s", "12 min", "2 h 5 min", "3 d 4 h"."""
    if seconds < 60:
        return f"{max(0, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"
