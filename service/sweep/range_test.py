"""The learning-rate range test (Smith 2017, section 3.3): one short training whose rate rises with every step.

The loss first falls, faster and faster, and then rises. A good rate lies where it falls fastest, well before it rises.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from service.errors import ServiceError, UsageError
from service.gate.interval import Array
from service.settings.load import Settings
from service.sweep.sweep import claimed_inputs
from service.sweep.trial import drop_weights, make_trial, run_trial
from service.training.train import Open
from trainer.recipe import Recipe
from trainer.records import EventTail

SMOOTHING = 0.9
"""Share of the earlier average in the moving average of the losses, which is corrected for its start (Kingma & Ba
2015). The first steps are noise, because their average is made of few losses."""
FIRST_STEPS = 10
"""The slope is not looked for in these steps."""
SLOPE_STEPS = 5
"""The slope at a step is that of a line through so many steps before and after it."""
LEAST_STEPS = 2 * FIRST_STEPS
"""Fewer steps tell nothing."""
RISEN = 4.0
"""The curve ends where the loss is this many times its lowest value."""


@dataclass(frozen=True, kw_only=True)
class RangeTest:
    """The curve, and what it suggests."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    """Of each step, smoothed."""
    steepest: float
    """The rate at which the loss falls fastest. Choose about this one."""
    lowest: float
    """The rate at which the loss is lowest. A tenth of it is the usual upper limit."""
    diverged: bool
    """Whether the loss became infinite at the highest rates."""

    def as_record(self) -> dict[str, Any]:
        """Return it for `--json` and range_test.json."""
        return {**vars(self), "rates": list(self.rates), "losses": list(self.losses)}


def range_recipe(recipe: Recipe, *, low: float, high: float, steps: int) -> Recipe:
    """Return the recipe of the test.

    Raises:
        UsageError: the limits are no range, or there are too few steps.
    """
    if not 0 < low < high:
        raise UsageError(f"--low {low:g}, --high {high:g}: the low rate must be above 0 and below the high one")
    if steps < LEAST_STEPS:
        raise UsageError(f"--steps {steps}: use at least {LEAST_STEPS}")
    training = replace(
        recipe.training, schedule="range_test", min_learning_rate=low, learning_rate=high, restarts=1,
        max_steps=steps, num_epochs=1000, checkpoint_steps=None, load_best=False,
    )  # fmt: skip
    evaluation = replace(recipe.evaluation, interval_fraction=1.0, interval_steps=None)
    tracking = replace(recipe.tracking, sample_predictions=0)
    return replace(recipe, training=training, evaluation=evaluation, tracking=tracking)


def range_test(here: Open, settings: Settings, *, low: float, high: float, steps: int) -> RangeTest:
    """Run the test in the open folder. A test that was interrupted goes on, one that ended is read again.

    Raises:
        Interrupted: a signal asked it to stop.
        ServiceError: the training failed before there was a curve.
    """
    inputs = claimed_inputs(here, settings)
    folder = here.folder.root / "trials"
    folder.mkdir(exist_ok=True)
    params = {"low": low, "high": high, "steps": steps}
    trial = make_trial(inputs, folder, params, range_recipe(here.recipe, low=low, high=high, steps=steps))
    trial = run_trial(trial, settings.trainer_secrets, here.stop)
    here.check_stop()
    drop_weights(trial)
    found = [event for event in EventTail(trial.directory.events).new() if event["event"] == "step"]
    measured = {event["step"]: event for event in found if isinstance(event["loss"], float)}
    if len(measured) < LEAST_STEPS:
        raise ServiceError(f"only {len(measured)} steps gave a loss: {trial.reason or 'see'} {trial.directory.log}")
    curve = [measured[step] for step in sorted(measured)]
    rates, losses = [event["learning_rate"] for event in curve], [event["loss"] for event in curve]
    return suggestion(rates, losses, diverged=trial.state == "failed")


def suggestion(rates: Sequence[float], losses: Sequence[float], *, diverged: bool = False) -> RangeTest:
    """Return what a curve of at least LEAST_STEPS points suggests."""
    smooth = smoothed(losses)
    low = np.minimum.accumulate(smooth)
    risen = np.flatnonzero(smooth > RISEN * low)
    smooth = smooth[: risen[0] if len(risen) else len(smooth)]
    lowest = int(smooth.argmin())
    places = range(min(FIRST_STEPS, lowest), lowest + 1)
    steepest = min(places, key=lambda place: _slope(np.log(rates[: len(smooth)]), smooth, place))
    return RangeTest(
        rates=tuple(rates[: len(smooth)]), losses=tuple(smooth.tolist()), steepest=rates[steepest],
        lowest=rates[lowest], diverged=diverged,
    )  # fmt: skip


def smoothed(losses: Sequence[float]) -> Array:
    """Return the moving average of the losses, corrected for its start."""
    average, found = 0.0, []
    for step, loss in enumerate(losses, 1):
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        found.append(average / (1 - SMOOTHING**step))
    return np.array(found)


def _slope(x: Array, y: Array, place: int) -> float:
    """Return the slope of the line through the points around a place, by least squares."""
    near = slice(max(0, place - SLOPE_STEPS), place + SLOPE_STEPS + 1)
    dx = x[near] - x[near].mean()
    return float((dx * y[near]).sum() / max(np.square(dx).sum(), 1e-300))


def plot(found: RangeTest, path: Path) -> None:
    """Draw the curve with both rates, as SVG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(found.rates, found.losses, color="#1f6feb")
    axes.axvline(found.steepest, color="#1a7f37", label=f"falls fastest: {found.steepest:.2g}")
    axes.axvline(found.lowest, color="#9a6700", linestyle="--", label=f"lowest: {found.lowest:.2g}")
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss (nats per token, smoothed)")
    axes.legend()
    figure.savefig(path, format="svg", metadata={"Date": None})
