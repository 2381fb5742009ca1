"""Follows the trainer's events and copies them to the board and the log."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from service.cycle.telling import Telling
from service.logs import event as log
from service.web.board import Board, Progress
from trainer.records import EventTail
from trainer.run_dir import RunDirectory

LATEST_STEPS = 20
"""The steps from which the time left is estimated."""
STEP_LOG_SECONDS = 5.0
"""Minimum time between logged steps. The first and the last step are always logged."""

SPLITS = {"anchor": "anchor", "current": "current", "candidate": "eval"}
"""Maps an evaluation's name in events to its `split` in metrics."""

DEVICE = {
    "gpu_card_used_bytes": "memory_used_bytes",
    "gpu_card_total_bytes": "memory_total_bytes",
    "gpu_power_watts": "power_watts",
    "gpu_temperature_celsius": "temperature_celsius",
    "process_memory_bytes": "process_memory_bytes",
    "process_cpu_percent": "process_cpu_percent",
}
"""The board's fields, and their names in the event `device`."""
ENDS_SOON_SECONDS = 4.0
"""About as long as the imports of the examination take."""
FROM_A_THREAD = ("device", "readings", "tracker")
"""Events that come also from a trainer that hangs."""


class Watcher:
    """Follows one run's events.jsonl."""

    def __init__(self, run: RunDirectory, run_id: int, board: Board) -> None:
        self._tail = EventTail(run.events)
        self._board = board
        self._run_id = run_id
        self._progress = Progress(run_id=run_id)
        self._last_step_logged = 0.0
        self._live = False
        self._telling = Telling(steps_are_logged=True)
        self._step_times: deque[tuple[int, float]] = deque(maxlen=LATEST_STEPS)
        """Number and time of the latest steps of this start."""
        self.ends_soon = False
        """Whether the fit has ended, or its last steps take less than ENDS_SOON_SECONDS."""
        self.failure: str | None = None
        """The trainer's error message, if it failed."""
        board.update(progress=self._progress, last_event=time.monotonic())

    def skip_history(self) -> None:
        """Read the events of earlier starts without logging them again."""
        self._live = False
        self.read()
        self.failure = None
        self.ends_soon = False

    def read(self) -> None:
        """Read new events."""
        for record in self._tail.new():
            if record["event"] not in FROM_A_THREAD:
                self._board.update(last_event=time.monotonic())
            if self._live:
                self._telling.tell(record)
            handler = HANDLERS.get(record["event"])
            if handler is not None:
                handler(self, record)
        self._live = True

    def close(self) -> None:
        """The trainer has ended."""
        self.read()
        self._telling.end()

    # --- one method per event ------------------------------------------------------------------------------

    def _log(self, message: str, record: dict[str, Any], *names: str, level: int = logging.INFO) -> None:
        if self._live:
            log(message, level=level, run=self._run_id, **{name: record.get(name) for name in names})

    def _show(self, **changes: Any) -> None:
        self._progress = replace(self._progress, **changes)
        self._board.update(progress=self._progress)

    def _started(self, record: dict[str, Any]) -> None:
        self._step_times.clear()
        self._log("Training started", record, "device", "world_size", "resumed_from_step")

    def _stage(self, record: dict[str, Any]) -> None:
        if record.get("state") == "begin":
            self.ends_soon = self.ends_soon or record.get("stage") == "judge"
            self._log(f"Training stage {record.get('stage')}", record)
        elif isinstance(record.get("seconds"), int | float):
            seconds = {**self._board.read().phase_seconds, str(record.get("stage")): float(record["seconds"])}
            self._board.update(phase_seconds=seconds)

    def _stage_progress(self, record: dict[str, Any]) -> None:
        done, total = int(record.get("done") or 0), int(record.get("total") or 0)
        self._show(stage=str(record.get("stage")), stage_done=done, stage_total=total)

    def _base_copy(self, record: dict[str, Any]) -> None:
        if record.get("state") == "made":
            self._log("4-bit copy of the base model", record, "path", "bytes", "seconds")
        else:
            self._log("4-bit copy of the base model", record, "state", "path", "message", level=logging.WARNING)

    def _strategy(self, record: dict[str, Any]) -> None:
        self._log("Several processes train", record, "strategy", "asked", "processes", "sequence")

    def _plan(self, record: dict[str, Any]) -> None:
        self._show(steps_total=int(record.get("steps_total") or 0))
        self._log("Training plan", record, "steps_total", "samples", "train_tokens", "held_out_samples")

    def _step(self, record: dict[str, Any]) -> None:
        step, steps_total = int(record.get("step") or 0), int(record.get("steps_total") or 0)
        self._step_times.append((step, _finite(record.get("time")) or 0.0))
        self._show(
            step=step,
            steps_total=steps_total,
            stage=None,
            seconds_left=self._seconds_left(steps_total),
            train_loss=_finite(record.get("loss")),
            learning_rate=_finite(record.get("learning_rate")),
            grad_norm=_finite(record.get("grad_norm")),
            tokens_per_second=_finite(record.get("tokens_per_second")),
            tokens_total=int(record.get("tokens_total") or 0),
            gpu_memory_bytes=int(record.get("gpu_memory_bytes") or 0),
        )
        left = self._progress.seconds_left
        self.ends_soon = self.ends_soon or (left is not None and left < ENDS_SOON_SECONDS)
        self._loss("train", record.get("loss"))
        now, first_or_last = time.monotonic(), record.get("step") in (1, record.get("steps_total"))
        if first_or_last or now - self._last_step_logged >= STEP_LOG_SECONDS:
            self._last_step_logged = now
            names = ("step", "steps_total", "loss", "learning_rate", "grad_norm", "tokens_per_second")
            self._log("Training step", record, *names)

    def _seconds_left(self, steps_total: int) -> float | None:
        """The remaining steps at the speed of the latest ones, in seconds."""
        (first, began), (last, ended) = self._step_times[0], self._step_times[-1]
        return (ended - began) / (last - first) * max(0, steps_total - last) if last > first else None

    def _device(self, record: dict[str, Any]) -> None:
        joules = _finite(record.get("energy_joules"))
        if joules is not None and self._live:
            used = max(0.0, joules - (self._progress.energy_joules or 0.0))
            self._board.update(gpu_energy_joules=(self._board.read().gpu_energy_joules or 0.0) + used)
        shown = {field: _finite(record.get(name)) for field, name in DEVICE.items()}
        use = _finite(record.get("utilization_percent"))
        shown["gpu_utilization"] = None if use is None else use / 100
        self._show(**shown, energy_joules=self._progress.energy_joules if joules is None else joules)

    def _readings(self, record: dict[str, Any]) -> None:
        self._log("GPU readings", record, "message", level=logging.WARNING)

    def _energy(self, record: dict[str, Any]) -> None:
        self._log("GPU energy of the run", record, "joules", "source")

    def _evaluation(self, record: dict[str, Any]) -> None:
        which = str(record.get("which"))
        if which == "candidate" and record.get("part") != "judging":
            self._show(patience=record.get("patience"), misses=int(record.get("misses") or 0))
        self._loss(SPLITS.get(which, which), record.get("loss"))
        self._log(f"Eval {which}", record, "step", "loss", "perplexity", "token_accuracy", "best", "part")

    def _loss(self, split: str, value: Any) -> None:
        loss = _finite(value)
        if loss is not None:
            self._board.update(losses={**self._board.read().losses, split: loss})

    def _checkpoint(self, record: dict[str, Any]) -> None:
        self._log("Saving checkpoint", record, "step", "path")

    def _early_stop(self, record: dict[str, Any]) -> None:
        self._log("Training stopped early", record, "step", "best_step")

    def _non_finite(self, record: dict[str, Any]) -> None:
        if self._live:  # not again at the next start of the same run
            self._board.update(non_finite=self._board.read().non_finite + 1)
        self._log("Training produced a non-finite value", record, "step", "what", level=logging.WARNING)

    def _experts(self, record: dict[str, Any]) -> None:
        layers = record.get("layers") or []
        dead = sum(len(layer.get("dead", ())) for layer in layers)
        largest = max((max(layer.get("shares", ()), default=0.0) for layer in layers), default=0.0)
        self._log("Expert use", record | {"largest_share": largest, "dead_experts": dead},
                  "step", "aux_loss", "largest_share", "dead_experts")  # fmt: skip

    def _expert_collapse(self, record: dict[str, Any]) -> None:
        self._log(
            "One expert gets most tokens of a layer. Raise moe.auxiliary_loss_weight, or set moe.freeze_router: true",
            record, "step", "layer", "expert", "share", "collapse_share", level=logging.WARNING,
        )  # fmt: skip

    def _out_of_memory(self, record: dict[str, Any]) -> None:
        self._log(
            "Training ran out of memory and continues with smaller batches",
            record,
            "step",
            "tokens",
            level=logging.WARNING,
        )

    def _unmeasured(self, record: dict[str, Any]) -> None:
        self._log("Training skipped: no held-out sample", record, "rows", "reasons", level=logging.WARNING)

    def _tracker(self, record: dict[str, Any]) -> None:
        self._log("Tracker failed", record, "tracker", "message", level=logging.WARNING)

    def _damaged(self, record: dict[str, Any]) -> None:
        self._log("Skipped a damaged checkpoint", record, "path", "message", level=logging.WARNING)

    def _machine_lost(self, record: dict[str, Any]) -> None:
        self.failure = None  # of a process that lost another one: the run goes on
        self._log("Training lost a machine and goes on from its last checkpoint", record, "message",
                  level=logging.WARNING)  # fmt: skip

    def _stopping(self, record: dict[str, Any]) -> None:
        self._log("Training is stopping", record, "reason")

    def _failed(self, record: dict[str, Any]) -> None:
        self.failure = str(record.get("message"))
        self._log("Training failed", record, "code", "message", level=logging.ERROR)

    def _finished(self, record: dict[str, Any]) -> None:
        self._log("Training finished", record, "seconds")


HANDLERS: dict[str, Callable[[Watcher, dict[str, Any]], None]] = {
    "started": Watcher._started,
    "stage": Watcher._stage,
    "progress": Watcher._stage_progress,
    "base_copy": Watcher._base_copy,
    "strategy": Watcher._strategy,
    "plan": Watcher._plan,
    "step": Watcher._step,
    "device": Watcher._device,
    "readings": Watcher._readings,
    "energy": Watcher._energy,
    "evaluation": Watcher._evaluation,
    "checkpoint": Watcher._checkpoint,
    "checkpoint_damaged": Watcher._damaged,
    "early_stop": Watcher._early_stop,
    "experts": Watcher._experts,
    "expert_collapse": Watcher._expert_collapse,
    "unmeasured": Watcher._unmeasured,
    "out_of_memory": Watcher._out_of_memory,
    "non_finite": Watcher._non_finite,
    "tracker": Watcher._tracker,
    "machine_lost": Watcher._machine_lost,
    "stopping": Watcher._stopping,
    "failed": Watcher._failed,
    "finished": Watcher._finished,
}
"""Handler of each event. Other events are ignored."""


def _finite(value: Any) -> float | None:
    """Return an event's number if it is finite. Events hold "nan" and "inf" as text."""
    return float(value) if isinstance(value, int | float) else None
