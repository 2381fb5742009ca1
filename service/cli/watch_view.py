"""How `status --watch` shows a moment: as a screen, or as one plain line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from service.cli.watch_source import Moment
from service.visible import on_one_line
from service.web.overview import duration

MARKS = {
    "published": ("✓", "green"), "refused": ("✕", "red"), "inconclusive": ("?", "yellow"), "failed": ("!", "bold red"),
    "returned": ("↺", "dim"),
}  # fmt: skip
"""Mark and style of a run by its state, as on the page. Any other state is in progress."""
IN_PROGRESS = ("…", "cyan")
STATUS_STYLES = {"healthy": "bold green", "degraded": "bold yellow", "unhealthy": "bold red"}
GPU = {
    "gpu_utilization": "{:.0%} busy", "gpu_power_watts": "{:,.0f} W",
    "gpu_temperature_celsius": "{:.0f} °C",
}  # fmt: skip
MOST_REASONS = 4
BAR_WIDTH = 40


def screen(moment: Moment, *, every: float) -> RenderableType:
    """Return the whole screen."""
    now = moment.now
    parts: list[RenderableType] = [Text(on_one_line(str(now["sentence"])), STATUS_STYLES.get(now["status"], "bold"))]
    if moment.note:
        parts.append(Text(on_one_line(moment.note), "yellow"))
    parts += [Text(f"! {on_one_line(str(said))}", "yellow") for said in now["troubles"].values()]
    parts += [_heading("Files"), *_files(now["pipeline"])]
    if now.get("run"):
        parts += [_heading(f"Run {now['run']['run_id']}"), _run(now["run"], now.get("losses") or {})]
    if moment.runs:
        parts += [_heading("Runs, newest first"), _strip(moment.runs), *_last_reason(moment.runs)]
    source = "the service" if moment.source == "service" else "the database"
    footer = f"{on_one_line(str(now['stream']))} · from {source}, every {every:g} s · Ctrl-C ends"
    return Group(*parts, Text(""), Text(footer, "dim"))


def line(moment: Moment) -> str:
    """Return the moment as one plain line."""
    said = [str(moment.now["sentence"])]
    if (run := moment.now.get("run")) and run.get("train_loss") is not None:
        said.append(f"run {run['run_id']}: {run['step']}/{run['steps_total']} steps, loss {run['train_loss']:.3f}")
    if ended := next((run for run in moment.runs if run["state"] in MARKS), None):
        said.append(f"last: {_ending(ended)}")
    if moment.note:
        said.append(moment.note)
    return on_one_line(" | ".join(said))


def what_counts(moment: Moment) -> tuple[Any, ...]:
    """Return what has to change for another plain line. A time that passes, or a single step, is not enough."""
    now = moment.now
    run = now.get("run") or {}
    total = run.get("steps_total") or 0
    tenth = 10 * run.get("step", 0) // total if total else None
    return (
        moment.source, moment.note, now["status"], now["state"], now.get("current_version"), tuple(now["troubles"]),
        tuple(stage["rows"] for stage in now["pipeline"]), run.get("run_id"), tenth,
        tuple((one["run_id"], one["state"]) for one in moment.runs),
    )  # fmt: skip


def _heading(title: str) -> Text:
    return Text(f"\n{title}", "bold")


def _files(stages: Sequence[Mapping[str, Any]]) -> Iterator[RenderableType]:
    """The counts, and why rows stayed behind."""
    yield Text("  " + " → ".join(f"{stage['stage']} {stage['rows']:,}" for stage in stages))
    shares = [share for stage in stages for share in stage["stayed"]]
    shares.sort(key=lambda share: -share["rows"])
    if shares:
        said = ", ".join(f"{share['rows']:,} {on_one_line(share['reason'])}" for share in shares[:MOST_REASONS])
        yield Text(f"  {said}{', …' if len(shares) > MOST_REASONS else ''}", "dim")


def _run(run: Mapping[str, Any], losses: Mapping[str, float]) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    if total := run["steps_total"]:
        bar = Table.grid(padding=(0, 2))
        bar.add_row(ProgressBar(total=total, completed=run["step"], width=BAR_WIDTH), f"{run['step']}/{total} steps")
        grid.add_row("", bar)
    elif run.get("stage"):
        grid.add_row("", f"{run['stage']} {run['stage_done']:,} of {run['stage_total']:,}")
    else:
        grid.add_row("", "preparing")
    for name, value in _run_facts(run, losses):
        grid.add_row(Text(name, "dim"), value)
    return Padding(grid, (0, 0, 0, 2))


def _run_facts(run: Mapping[str, Any], losses: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    if run["train_loss"] is not None:
        yield "training loss", f"{run['train_loss']:.4f}"
    if "eval" in losses:
        against = [f"{losses[name]:.4f} {title}" for name, title in (("anchor", "base"), ("current", "current adapter"))
                   if name in losses]  # fmt: skip
        yield "held-out loss", f"{losses['eval']:.4f}" + (f"  against {', '.join(against)}" if against else "")
    if run["patience"] is not None:
        left = max(0, run["patience"] - run["misses"])
        yield "patience", f"stops early after {left} more evaluation{'s' * (left != 1)} without gain"
    if run["tokens_per_second"] is not None:
        yield "speed", f"{run['tokens_per_second']:,.0f} tokens/s"
    if run["seconds_left"]:
        yield "time left", duration(run["seconds_left"])
    memory = [f"{run['gpu_memory_bytes'] / 2**30:.1f} GiB"] if run["gpu_memory_bytes"] else []
    if gpu := memory + [form.format(run[name]) for name, form in GPU.items() if run.get(name)]:
        yield "GPU", ", ".join(gpu)


def _strip(runs: Sequence[Mapping[str, Any]]) -> Text:
    strip = Text("  ")
    for run in runs:
        strip.append(*MARKS.get(run["state"], IN_PROGRESS))
    strip.append("   ✓ published  ? inconclusive  ✕ refused  ! failed  ↺ returned  … in progress", "dim")
    return strip


def _last_reason(runs: Sequence[Mapping[str, Any]]) -> Iterator[Text]:
    if ended := next((run for run in runs if run["state"] in MARKS), None):
        yield Text(f"  {_ending(ended)}")


def _ending(run: Mapping[str, Any]) -> str:
    loss = "" if run["candidate_loss"] is None else f", loss {run['candidate_loss']:.4f}"
    why = f": {on_one_line(run['reason'])}" if run["reason"] else ""
    return f"run {run['run_id']} {run['state']}{loss}{why}"
