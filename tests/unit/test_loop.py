"""The fit: schedule, accumulation, early stopping and its ends."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from fitting import checked, gradients, loss_model, make_fit
from run_folder import short_recipe

from trainer.data.batches import collate, pack_samples
from trainer.errors import Diverged, OutOfMemory
from trainer.evaluate.score import Score
from trainer.events import Events
from trainer.fit.progress import Progress, evaluation_due
from trainer.fit.schedule import learning_rate, warmup_steps
from trainer.model.lora import adapter_weights
from trainer.recipe import Evaluation, Training
from trainer.records import EventTail
from trainer.train import load_model


def score(loss: float) -> Score:
    return Score(loss=loss, token_accuracy=0.5, tokens=10)


def names(events: Events) -> list[str]:
    return [event["event"] for event in EventTail(events.path).new()]


# --- schedule -------------------------------------------------------------------------------------------------


def test_the_rate_rises_and_falls_and_is_never_zero():
    training = Training(learning_rate=1.0, warmup_fraction=0.1)
    rates = [learning_rate(step, 100, training) for step in range(1, 101)]
    assert rates[:10] == [pytest.approx(step / 11) for step in range(1, 11)]
    assert rates[10] == 1.0
    assert all(earlier > later for earlier, later in itertools.pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(1 / 90)


def test_the_decay_schedules():
    halfway = {
        shape: learning_rate(51, 100, Training(learning_rate=2.0, warmup_fraction=0.0, schedule=shape))
        for shape in ("linear", "cosine", "constant")
    }
    assert halfway == {"linear": pytest.approx(1.0), "cosine": pytest.approx(1.0), "constant": 2.0}
    start = learning_rate(1, 100, Training(learning_rate=2.0, warmup_fraction=0.0, schedule="cosine"))
    assert start == pytest.approx(2.0)


@pytest.mark.parametrize(("steps", "fraction", "warmup"), [(1000, 0.03, 30), (10, 0.03, 1), (10, 0, 0), (1, 0.5, 0)])
def test_warm_up_takes_at_least_one_step(steps, fraction, warmup):
    assert warmup_steps(steps, fraction) == warmup
    assert learning_rate(steps, steps, Training(warmup_fraction=fraction)) > 0


# --- accumulation ---------------------------------------------------------------------------------------------


def window_gradient(fit, model, budget: int):
    """The gradient of all 16 samples, packed into `budget` tokens."""
    windows = fit.context.windows
    members = range(16)
    packs = pack_samples(members, windows.samples, budget=budget, rank=0, world=1)
    batches = [collate([windows.samples[i] for i in chosen]) for chosen in packs]
    fit.passes.budget = budget
    loss = fit.passes.gradients(batches, sum(windows.samples[i].supervised for i in members), 1)
    return len(batches), loss, gradients(model)


def test_every_split_of_a_window_gives_the_same_gradient(tmp_path):
    recipe = short_recipe(lora__dropout=0.0)
    loaded = load_model(checked(recipe))
    weights = loss_model(recipe).state_dict()
    loaded.model.load_state_dict(weights, strict=False)
    fit = make_fit(tmp_path, recipe, loaded=loaded)
    cuts = {budget: window_gradient(fit, loaded.model, budget) for budget in (10_000, 1000, 1)}
    assert cuts[10_000][0] == 1 < cuts[1000][0] < cuts[1][0] == 16
    _, loss, gradient = cuts[10_000]
    for budget in (1000, 1):
        assert cuts[budget][1] == pytest.approx(loss, rel=1e-5)
        torch.testing.assert_close(cuts[budget][2], gradient, rtol=1e-3, atol=1e-7)


def test_running_out_of_memory_halves_the_batch_and_keeps_the_gradient(tmp_path):
    recipe = short_recipe(lora__dropout=0.0)
    loaded = load_model(checked(recipe))
    fit = make_fit(tmp_path, recipe, loaded=loaded)
    _, loss, gradient = window_gradient(fit, loaded.model, 1200)
    forward = loaded.model.forward

    def small_only(batch):
        if batch.tokens > 600:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(batch)

    loaded.model.forward = small_only
    _, again, found = window_gradient(fit, loaded.model, 1200)
    assert again == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(found, gradient, rtol=1e-3, atol=1e-7)
    assert fit.passes.budget <= 600 and "out_of_memory" in names(fit.context.events)

    def never(batch):
        raise MemoryError

    loaded.model.forward = never
    with pytest.raises(OutOfMemory, match=r"out of memory with \d+ tokens per forward pass"):
        window_gradient(fit, loaded.model, 1200)


# --- early stopping -------------------------------------------------------------------------------------------


def test_patience_counts_evaluations_without_a_gain_of_the_threshold():
    limits = Evaluation(patience=2, threshold=0.1)
    progress = Progress()
    stopped = []
    for step, loss in enumerate([3.0, 2.5, 2.45, 2.35, 2.30, 2.26]):
        progress.step = step
        progress.record(score(loss), limits)
        stopped.append(progress.stopped_early)
    assert stopped == [False, False, False, False, False, True]
    assert progress.best_step == 5


def test_the_best_step_is_the_lowest_loss_of_those_that_trained():
    progress = Progress()
    assert progress.best_step == 0
    for step, loss in [(0, 1.0), (2, 3.0), (4, 2.0), (6, 2.0), (8, 2.5)]:
        progress.step = step
        progress.record(score(loss), Evaluation())
    assert progress.best_step == 4


def test_an_evaluation_is_the_best_only_below_every_earlier_one_and_the_start():
    progress = Progress()
    best = []
    for step, loss in [(0, 1.398), (1, 1.478), (2, 1.398), (3, 1.397), (4, 1.397)]:
        progress.step = step
        progress.record(score(loss), Evaluation())
        best.append(progress.latest_is_best)
    assert best == [True, False, False, True, False]


def test_progress_survives_json():
    progress = Progress(step=3, losses=[1.0, 2.0], anchor=score(2.0), current=score(1.5))
    assert Progress.from_json(progress.as_json()) == progress
    progress.record(score(1.0), Evaluation())
    assert Progress.from_json(progress.as_json()) == progress


def test_when_an_evaluation_is_due():
    due = [step for step in range(14) if evaluation_due(step, 13, 0.25)]
    assert due == [0, 4, 8, 12, 13]
    assert [step for step in range(4) if evaluation_due(step, 3, 0.001)] == [0, 1, 2, 3]


def test_early_stopping_ends_the_fit_and_keeps_the_best_weights(tmp_path, monkeypatch):
    recipe = short_recipe(
        evaluation__interval_fraction=0.05, evaluation__patience=2, training__num_epochs=4, lora__rank=2
    )
    fit = make_fit(tmp_path, recipe)
    losses = iter([5.0, 4.0, 3.0, 4.0, 4.5, 9.0])
    weights = {}

    def measure():
        weights[fit.progress.step] = adapter_weights(fit.context.adapted)
        return score(next(losses))

    monkeypatch.setattr(fit.context.held_out, "measure", measure)
    monkeypatch.setattr(fit.context.held_out, "measure_base", lambda: score(5.0))
    progress = fit.run()
    assert (progress.step, progress.best_step, progress.stopped_early) == (4, 2, True)
    kept = adapter_weights(fit.context.adapted)
    assert all(torch.equal(kept[name], weights[2][name]) for name in kept)
    assert any(not torch.equal(kept[name], weights[4][name]) for name in kept)
    assert {path.name for path in fit.context.checkpoints.iterdir()} == {"step-000002", "step-000004"}
    assert "early_stop" in names(fit.context.events)


# --- numbers that are not finite ------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["loss", "grad_norm", "eval_loss"])
def test_a_number_that_is_not_finite_ends_the_fit(tmp_path, monkeypatch, where):
    fit = make_fit(tmp_path, short_recipe())
    before = adapter_weights(fit.context.adapted)
    if where == "loss":
        monkeypatch.setattr(fit.passes, "gradients", lambda *_: math.nan)
    elif where == "grad_norm":
        monkeypatch.setattr(fit.context.accelerator, "clip_grad_norm_", lambda *_: torch.tensor(math.inf))
    else:
        scores = iter([score(4.0), score(4.0), score(math.nan)])
        monkeypatch.setattr(fit.context.held_out, "measure", lambda: next(scores))
    with pytest.raises(Diverged, match=where):
        fit.run()
    events = EventTail(fit.context.events.path).new()
    assert [event["what"] for event in events if event["event"] == "non_finite"] == [where]
    if where != "eval_loss":
        after = adapter_weights(fit.context.adapted)
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_each_step_and_evaluation_reaches_the_trackers(tmp_path):
    fit = make_fit(tmp_path, short_recipe())
    fit.run()
    logged = fit.context.trackers.logged
    steps = [step for step, values in logged if "train/loss" in values]
    assert steps == [1, 2, 3, 4]
    assert [step for step, values in logged if "eval/loss" in values] == [0, 2, 4]
    assert {key for _, values in logged for key in values} == {
        "train/loss",
        "train/learning_rate",
        "train/grad_norm",
        "train/tokens_per_second",
        "memory/gpu_bytes",
        "eval/loss",
        "eval/perplexity",
        "eval/token_accuracy",
    }
