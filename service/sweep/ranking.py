"""Ranks the trials of a sweep by held-out loss, each with the interval of its difference to the best one.

The best of many trials is lucky, too: its loss on other files will be a little higher than the one that chose it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from service.gate.interval import Array, Interval, ratio_interval, sums_by_file
from service.sweep.trial import Trial
from trainer.records import read_evaluation

ORDER = {"finished": 0, "pruned": 1, "failed": 2, "waiting": 3}


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """A trial at its place."""

    trial: Trial
    perplexity: float | None
    against_best: Interval | None
    """The trial's loss minus that of the best trial. None for the best itself, and where the samples differ."""
    against_base: Interval | None
    """The trial's loss minus that of the base."""

    def as_record(self) -> dict[str, Any]:
        """Return it for sweep.json and `--json`."""
        trial = self.trial
        return {
            "trial": trial.name, "params": trial.params, "state": trial.state, "loss": trial.loss,
            "perplexity": self.perplexity, "reason": trial.reason,
            "against_best": None if self.against_best is None else vars(self.against_best),
            "against_base": None if self.against_base is None else vars(self.against_base),
            "folder": str(trial.directory.root),
        }  # fmt: skip


def ranked(trials: Sequence[Trial]) -> list[Ranked]:
    """Return the trials, the best first. Trials that were ended early come after those that finished."""
    in_order = sorted(trials, key=lambda trial: (ORDER[trial.state], math.inf if trial.loss is None else trial.loss))
    best = in_order[0] if in_order and in_order[0].state == "finished" else None
    return [_ranked(trial, best) for trial in in_order]


def _ranked(trial: Trial, best: Trial | None) -> Ranked:
    finished = trial.state == "finished" and trial.loss is not None
    return Ranked(
        trial=trial,
        perplexity=math.exp(min(trial.loss, 700.0)) if finished and trial.loss is not None else None,
        against_best=_difference(trial, best) if finished and best is not None and best is not trial else None,
        against_base=_to_base(trial) if finished else None,
    )


def _sums(trial: Trial, model: str) -> tuple[Array, Array]:
    return sums_by_file(read_evaluation(trial.directory.evaluation), lambda sample: sample.loss[model])


def _difference(trial: Trial, other: Trial) -> Interval | None:
    """Compare two trials file by file. Their samples are the same unless a value changes how samples are made."""
    mine, tokens = _sums(trial, "candidate")
    theirs, other_tokens = _sums(other, "candidate")
    if len(tokens) < 2 or not np.array_equal(tokens, other_tokens):
        return None
    return ratio_interval(mine - theirs, tokens)


def _to_base(trial: Trial) -> Interval | None:
    mine, tokens = _sums(trial, "candidate")
    base, _ = _sums(trial, "anchor")
    return ratio_interval(mine - base, tokens) if len(tokens) > 1 else None


def plot(found: Sequence[Ranked], path: Path) -> None:
    """Draw the loss of each finished trial against each value that was varied, as SVG. Bars: 95 % against the base."""
    from matplotlib.figure import Figure

    finished = [one for one in found if one.trial.state == "finished"]
    keys = sorted({key for one in finished for key in one.trial.params})
    figure = Figure(figsize=(4.2 * max(1, len(keys)), 3.4), layout="constrained")
    for place, key in enumerate(keys, 1):
        axes = figure.add_subplot(1, len(keys), place)
        varied = [one for one in finished if key in one.trial.params]  # an earlier command may have varied others
        values = [one.trial.params[key] for one in varied]
        numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        positions = values if numeric else [_label(value) for value in values]
        losses = [one.trial.loss or 0.0 for one in varied]
        errors = [
            0.0 if one.against_base is None else one.against_base.high - one.against_base.difference for one in varied
        ]
        axes.errorbar(positions, losses, yerr=errors, fmt="o", capsize=3, color="#1f6feb", ecolor="#9db7e0")
        if numeric and min(values) > 0 and max(values) >= 10 * min(values):
            axes.set_xscale("log")
        axes.set_xlabel(key)
        axes.set_ylabel("held-out loss (nats per token)")
        axes.grid(alpha=0.3)
    figure.savefig(path, format="svg", metadata={"Date": None})


def _label(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
