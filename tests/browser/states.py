"""Puts a stage into each state that the page is tested in."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from stage import Stage

from service.web.board import Progress

LOOKS: dict[str, dict[str, Any]] = {
    "light": {"viewport": {"width": 1200, "height": 900}},
    "dark": {"viewport": {"width": 1200, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "has_touch": True, "color_scheme": "dark"},
}
ANSWERS = [
    {"prompt": "def read_lines(path):", "base": "    return open(path)\n",
     "candidate": "    with open(path) as file:\n        return file.read().splitlines()\n"},
    {"prompt": "class Stack:", "base": "    pass", "candidate": "    def __init__(self):\n        self.items = []\n"},
]  # fmt: skip


def empty(_stage: Stage) -> None:
    """A service that was just installed."""


def waiting(stage: Stage) -> None:
    history(stage, 6)
    stage.waiting_files(3, low_score=41, too_short=7)


def training(stage: Stage) -> None:
    history(stage, 12)
    run_id = stage.run("training", parent=stage.board.read().current_version)
    stage.events(run_id, 230, total=300)
    stage.waiting_files(118, low_score=41)
    stage.board.update(
        state="training", rows_in_run=120, losses={"train": 1.151, "eval": 1.214, "anchor": 1.9, "current": 1.6},
        progress=Progress(run_id=run_id, step=230, steps_total=300, train_loss=1.151, learning_rate=4.7e-4,
                          grad_norm=0.53, tokens_per_second=3912.0, tokens_total=920_000, seconds_left=742.0,
                          misses=1, patience=3),
    )  # fmt: skip


def experts(stage: Stage) -> None:
    training(stage)
    progress = stage.board.read().progress
    assert progress is not None
    stage.events(progress.run_id, 230, total=300, experts=True)
    card: dict[str, Any] = {
        "gpu_memory_bytes": 27 * 10**9, "gpu_card_used_bytes": 28.4e9, "gpu_card_total_bytes": 33.6e9,
        "gpu_utilization": 0.97, "gpu_power_watts": 561.0, "gpu_temperature_celsius": 71.0,
    }  # fmt: skip
    stage.board.update(progress=replace(progress, **card))


def refused(stage: Stage) -> None:
    history(stage, 5)
    run_id = stage.run(
        "refused", losses=(1.9, 1.31, 1.34), parent=1,
        reason="gain: worse by 0.0312, 95 % interval 0.0101 to 0.0520, 14 files",
        rules={"gain": "fail", "languages": "inconclusive"},
    )  # fmt: skip
    stage.files(run_id, *[("returned", "returned", None)] * 8, ("held_out", "held_out", None))
    stage.events(run_id, 60)
    finish(stage)


def inconclusive(stage: Stage) -> None:
    history(stage, 5)
    stage.run(
        "inconclusive", losses=(1.9, 1.31, 1.30), parent=1, rules={"gain": "inconclusive"},
        reason="gain: better by 0.0091, 95 % interval -0.0102 to 0.0284, 6 files",
    )  # fmt: skip
    finish(stage)


def published(stage: Stage) -> None:
    history(stage, 16)
    for run_id in (stage.board.read().current_version, previous(stage)):
        directory = stage.home.run(int(run_id or 0))
        directory.root.mkdir(parents=True, exist_ok=True)
        directory.answers.write_text(json.dumps({"format": 1, "run_id": run_id, "prompts": ANSWERS}))
    finish(stage)


def database_down(stage: Stage) -> None:
    published(stage)
    stage.board.trouble("database", "the database does not answer: connection refused. Start it, or check DATABASE_URL")


def held(stage: Stage) -> None:
    training(stage)
    stage.board.update(state="on_hold", held_since=stage.board.read().state_since)


STATES: dict[str, Callable[[Stage], None]] = {
    "empty": empty,
    "waiting": waiting,
    "training": training,
    "experts": experts,
    "refused": refused,
    "inconclusive": inconclusive,
    "published": published,
    "database_down": database_down,
    "held": held,
}


def previous(stage: Stage) -> int:
    return int(stage.query("select parent_version from codelupe.adapters where is_current")[0][0])


def history(stage: Stage, count: int) -> None:
    """Insert runs whose loss falls, some of which were not promoted."""
    current, loss = None, 1.75
    for number in range(1, count + 1):
        new = loss - 0.05 + stage.chance.gauss(0, 0.01)
        state = {4: "refused", 7: "inconclusive", 9: "failed", 11: "returned"}.get(number, "published")
        has_report = state not in ("failed", "returned")
        reason = {"failed": "run 9 failed: the loss is not finite at step 12", "returned": "the service ended"}.get(
            state
        )
        run_id = stage.run(state, losses=(1.9, loss, new) if has_report else None, parent=current, reason=reason)
        if state == "published":
            current, loss = run_id, new
            stage.files(run_id, *[("trained", "trained", None)] * 9, ("held_out", "held_out", None),
                        ("rejected", "rejected", "duplicate"), ("rejected", "rejected", "too_few_lines"))  # fmt: skip
    finish(stage)


def finish(stage: Stage) -> None:
    stage.refresh()
    stage.waiting_files(5, low_score=12)
    stage.home.log_file.write_text(
        "2026-11-27T10:00:00+0000 INFO Claimed run=5 rows=120 held_out=9\n"
        "2026-11-27T10:00:31+0000 INFO Verdict run=5 decision=promote candidate=1.2 current=1.3 anchor=1.9\n"
    )
