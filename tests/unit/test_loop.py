"""The fit: accumulation, early stopping, checkpoints and its ends."""

from __future__ import annotations

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
from trainer.model.lora import adapter_weights
from trainer.recipe import Evaluation
from trainer.records import EventTail
from trainer.train import load_model


def score(loss: float) -> Score:
    return Score(loss=loss, token_accuracy=0.5, tokens=10)


def names(events: Events) -> list[str]:
    return [event["event"] for event in EventTail(events.path).new()]


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


def test_without_packing_a_pass_takes_few_samples_and_the_gradient_is_the_same(tmp_path):
    """Short samples: packed, one pass takes all of a window's."""
    found = {}
    for packing in (True, False):
        recipe = short_recipe(
            lora__dropout=0.0, data__max_length=2048, training__batch_size=2, training__gradient_accumulation_steps=3,
            training__packing=packing,
        )  # fmt: skip
        loaded = load_model(checked(recipe))
        loaded.model.load_state_dict(loss_model(recipe).state_dict(), strict=False)
        fit = make_fit(tmp_path / str(packing), recipe, loaded=loaded)
        fit.passes.plan(0)
        batches = fit.passes.next_batches(1)
        loss = fit.passes.gradients(batches, fit.context.windows[0].supervised, 1)
        found[packing] = [len(batch.lengths) for batch in batches], loss, gradients(loaded.model)
    assert found[True][0] == [6] and found[False][0] == [2, 2, 2]
    assert found[False][1] == pytest.approx(found[True][1], rel=1e-5)
    torch.testing.assert_close(found[False][2], found[True][2], rtol=1e-3, atol=1e-7)


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
    due = [step for step in range(14) if evaluation_due(step, 13, Evaluation(interval_fraction=0.25))]
    assert due == [0, 4, 8, 12, 13]
    assert [step for step in range(4) if evaluation_due(step, 3, Evaluation(interval_fraction=0.001))] == [0, 1, 2, 3]
    assert [step for step in range(14) if evaluation_due(step, 13, Evaluation(interval_steps=5))] == [0, 5, 10, 13]


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


@pytest.mark.parametrize(("load_best", "result"), [(True, 1), (False, 3)])
def test_the_result_is_the_best_or_the_last_step(tmp_path, monkeypatch, load_best, result):
    recipe = short_recipe(
        evaluation__interval_steps=1, training__max_steps=3, training__load_best=load_best, lora__rank=2
    )
    fit = make_fit(tmp_path, recipe)
    losses = iter([5.0, 3.0, 4.0, 4.5])
    weights = {}

    def measure():
        weights[fit.progress.step] = adapter_weights(fit.context.adapted)
        return score(next(losses))

    monkeypatch.setattr(fit.context.held_out, "measure", measure)
    monkeypatch.setattr(fit.context.held_out, "measure_base", lambda: score(5.0))
    progress = fit.run()
    assert (progress.step, progress.best_step) == (3, 1)
    assert progress.result_step(load_best=load_best) == result
    kept = adapter_weights(fit.context.adapted)
    assert [step for step in weights if all(torch.equal(kept[n], weights[step][n]) for n in kept)] == [result]


def test_checkpoints_between_evaluations_and_how_many_are_kept(tmp_path, monkeypatch):
    recipe = short_recipe(
        evaluation__interval_steps=4, training__checkpoint_steps=1, training__keep_checkpoints=2,
        training__num_epochs=2, training__max_steps=7, lora__rank=2,
    )  # fmt: skip
    fit = make_fit(tmp_path, recipe)
    losses = iter([5.0, 3.0, 4.0])
    monkeypatch.setattr(fit.context.held_out, "measure", lambda: score(next(losses)))
    monkeypatch.setattr(fit.context.held_out, "measure_base", lambda: score(5.0))
    assert fit.run().step == 7
    saved = [event["step"] for event in EventTail(fit.context.events.path).new() if event["event"] == "checkpoint"]
    assert saved == [1, 2, 3, 4, 5, 6, 7]
    kept = sorted(path.name for path in fit.context.checkpoints.iterdir())
    assert kept == ["step-000004", "step-000006", "step-000007"]


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
