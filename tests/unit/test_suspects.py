"""A failed step names the rows that may have caused it."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from fitting import checked, make_fit
from run_folder import events, run, short_recipe, short_run

from trainer import train
from trainer.data.encoder import TokenSample
from trainer.errors import Diverged, OutOfMemory
from trainer.fit.loop import Fit
from trainer.records import Suspects, read_suspects
from trainer.run_dir import RunDirectoryError, write_json
from trainer.train import load_model

RECIPE = {"lora__dropout": 0.0}


def broken(fit: Fit, harm) -> None:
    """Make the forward pass call `harm(ids, loss)`, which returns a loss or raises an error."""
    model, forward = fit.context.model, fit.context.model.forward

    def failing(batch, **options):
        loss, correct = forward(batch, **options)
        return (harm(batch, loss) if model.training else loss), correct

    model.forward = failing


def holds(batch, sample: TokenSample) -> bool:
    ids, wanted = batch.ids[0].tolist(), sample.ids.tolist()
    starts = [sum(batch.lengths[:n]) for n in range(len(batch.lengths))]
    return any(ids[start : start + len(wanted)] == wanted for start in starts)


@pytest.fixture(scope="module")
def loaded():
    return load_model(checked(short_recipe(**RECIPE)))


def fit_of(tmp_path, loaded, monkeypatch) -> Fit:
    monkeypatch.setattr(loaded.model, "forward", loaded.model.forward)  # put back afterwards
    return make_fit(tmp_path, short_recipe(**RECIPE), loaded=loaded)


def members(fit: Fit, step: int) -> list[TokenSample]:
    windows = fit.context.windows
    return [windows.samples[index] for index in windows[step - 1].members]


@pytest.mark.parametrize(
    ("how", "reason"), [("loss", "non_finite"), ("gradient", "non_finite"), ("memory", "out_of_memory")]
)
def test_a_single_bad_row_is_named(tmp_path, loaded, monkeypatch, how, reason):
    fit = fit_of(tmp_path, loaded, monkeypatch)
    culprit = members(fit, 2)[1]

    def harm(batch, loss):
        if not holds(batch, culprit):
            return loss
        if how == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss * math.nan if how == "loss" else loss + (loss - loss.detach()) * math.inf

    broken(fit, harm)
    with pytest.raises(OutOfMemory if how == "memory" else Diverged) as failed:
        fit.run()
    assert failed.value.suspects == Suspects(reason=reason, step=2, file_ids=(culprit.file_id,))
    assert fit.progress.step == 1


def test_rows_that_fail_only_together_are_all_named(tmp_path, loaded, monkeypatch):
    fit = fit_of(tmp_path, loaded, monkeypatch)
    culprit = members(fit, 2)[0]
    broken(fit, lambda batch, loss: loss * math.nan if holds(batch, culprit) and len(batch.lengths) > 1 else loss)
    with pytest.raises(Diverged) as failed:
        fit.run()
    assert failed.value.suspects.file_ids == tuple(sorted(sample.file_id for sample in members(fit, 2)))


@pytest.mark.parametrize("error", [None, MemoryError])
def test_no_row_is_suspected_if_every_sample_fails(tmp_path, loaded, monkeypatch, error):
    fit = fit_of(tmp_path, loaded, monkeypatch)

    def harm(batch, loss):
        if error is not None:
            raise error
        return loss * math.nan

    broken(fit, harm)
    with pytest.raises((Diverged, OutOfMemory)) as failed:
        fit.run()
    assert failed.value.suspects is None


def test_a_held_out_row_without_a_finite_loss_is_named(tmp_path, loaded, monkeypatch):
    fit = fit_of(tmp_path, loaded, monkeypatch)
    culprit = fit.context.held_out.samples[1]
    forward = loaded.model.forward

    def without_loss(batch, **options):
        loss, correct = forward(batch, **options)
        return (loss * math.nan if holds(batch, culprit) else loss), correct

    loaded.model.forward = without_loss
    with pytest.raises(Diverged, match="anchor_loss") as failed:
        fit.run()
    assert failed.value.suspects == Suspects(reason="non_finite", step=0, file_ids=(culprit.file_id,))


def test_an_evaluation_that_runs_out_of_memory_continues_in_smaller_packs(tmp_path, loaded, monkeypatch):
    fit = fit_of(tmp_path, loaded, monkeypatch)
    held_out, forward = fit.context.held_out, loaded.model.forward
    expected = held_out.measure()
    most = max(sample.tokens for sample in held_out.samples)

    def small_only(batch, **options):
        if batch.tokens > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(batch, **options)

    loaded.model.forward = small_only
    assert len(held_out.packs) < len(held_out.samples)
    found = held_out.measure()
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert dataclasses.replace(found, loss=0) == dataclasses.replace(expected, loss=0)
    loaded.model.forward = lambda batch, **_: (_ for _ in ()).throw(MemoryError())
    with pytest.raises(MemoryError):
        held_out.measure()


def test_the_run_leaves_its_suspects_and_forgets_those_of_an_earlier_start(tmp_path, monkeypatch):
    directory = short_run(tmp_path / "run")
    found = Suspects(reason="non_finite", step=3, file_ids=(4, 7))

    def end(error):
        monkeypatch.setattr(train.Fit, "run", lambda _: (_ for _ in ()).throw(error))
        return run(directory)

    assert end(Diverged("loss is nan", found)) == 4
    assert read_suspects(directory.suspects) == found
    assert end(OutOfMemory("no memory")) == 3
    assert read_suspects(directory.suspects) is None
    assert [event["code"] for event in events(directory, "failed")] == [4, 3]


def test_a_damaged_suspects_file_is_reported(tmp_path):
    write_json(tmp_path / "suspects.json", {"reason": "non_finite"})
    with pytest.raises(RunDirectoryError, match="cannot be read"):
        read_suspects(tmp_path / "suspects.json")
