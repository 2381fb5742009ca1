"""The judging part: measured once with base, parent and result, and written sample by sample."""

from __future__ import annotations

import math

import pytest
import torch
from run_folder import events, make_row, make_run, program, run, short_recipe, short_rows, weights

from trainer.evaluate import judged
from trainer.fit import judging
from trainer.model.step import LossModel
from trainer.records import read_evaluation, read_outcomes, read_suspects
from trainer.run_dir import MANIFEST, read_json, sha256_file


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    held_out = [*short_rows(5, start=101), *(make_row(n, program(n), fresh=False) for n in range(200, 203))]
    directory = make_run(tmp_path_factory.mktemp("runs") / "000001", short_recipe(), short_rows(16), held_out)
    assert run(directory) == 0
    return directory


def test_the_lines_add_up_to_the_report(first):
    report, lines = read_json(first.report), list(read_evaluation(first.evaluation))
    assert len(lines) == report["held_out"]["samples"] == 5
    for name in ("anchor", "current", "candidate"):
        loss = sum(line.loss[name] for line in lines) / sum(line.tokens for line in lines)
        assert report["evaluation"][name]["loss"] == pytest.approx(loss, rel=1e-12)
        right = sum(line.correct[name] for line in lines) / sum(line.tokens for line in lines)
        assert report["evaluation"][name]["token_accuracy"] == right
    assert {line.fresh for line in lines} == {True, False}
    assert all(line.path and line.language == "python" and line.kind == "instruction" for line in lines)


def test_the_events_report_both_parts(first):
    found = [(event["step"], event["which"], event.get("part")) for event in events(first, "evaluation")]
    best = read_json(first.report)["steps"]["best"]
    assert found[:3] == [(0, "anchor", None), (0, "current", None), (0, "candidate", None)]
    assert found[-3:] == [(best, name, "judging") for name in ("anchor", "current", "candidate")]


def test_current_is_the_parent_and_the_result_keeps_its_weights(first, tmp_path, monkeypatch):
    second = make_run(
        tmp_path / "000002", short_recipe(), short_rows(8, start=30), short_rows(4, start=101),
        parent=first.adapter, run_id=2,
    )  # fmt: skip
    before, after = {}, {}

    def watched(held_out, adapted, **options):
        before.update(judged.adapter_weights(adapted))
        result = judged.judge_samples(held_out, adapted, **options)
        after.update(judged.adapter_weights(adapted))
        return result

    monkeypatch.setattr(judging, "judge_samples", watched)
    assert run(second) == 0
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(second.adapter).items())
    of_first = {line.file_ids: line.loss["candidate"] for line in read_evaluation(first.evaluation)}
    both = [line for line in read_evaluation(second.evaluation) if line.file_ids in of_first]
    assert both and all(line.loss["current"] == pytest.approx(of_first[line.file_ids], rel=1e-4) for line in both)
    assert all(line.loss["current"] != line.loss["candidate"] for line in both)


def test_a_file_of_the_judging_part_without_a_finite_loss_is_named(tmp_path, monkeypatch):
    directory = make_run(tmp_path / "000001", short_recipe(), short_rows(8), short_rows(4, start=101))
    forward, named = LossModel.forward, set()

    def spy(held_out, adapted, **options):
        named.add(held_out.samples[0].file_id)
        wanted = held_out.samples[0].ids[-40:].tolist()

        def failing(self, batch, **options):
            loss, correct = forward(self, batch, **options)
            return (loss * math.nan if str(wanted)[1:-1] in str(batch.ids[0].tolist()) else loss), correct

        monkeypatch.setattr(LossModel, "forward", failing)
        return judged.judge_samples(held_out, adapted, **options)

    monkeypatch.setattr(judging, "judge_samples", spy)
    assert run(directory) == 4
    suspects = read_suspects(directory.suspects)
    assert suspects is not None and set(suspects.file_ids) == named
    assert not directory.report.exists() and not list(read_outcomes(directory.rows_outcome))


def test_on_a_trunk_the_published_adapter_is_current_and_not_the_start(first, tmp_path):
    trunk = make_run(
        tmp_path / "000002", short_recipe(), short_rows(8, start=30), short_rows(4, start=101),
        parent=first.adapter, run_id=2,
    )  # fmt: skip
    assert run(trunk) == 0
    manifest = {"parent_version": 1, "trunk": [2], "current_manifest_sha256": sha256_file(first.adapter / MANIFEST)}
    third = make_run(
        tmp_path / "000003", short_recipe(), short_rows(8, start=60), short_rows(4, start=101),
        parent=trunk.adapter, run_id=3, manifest=manifest,
    )  # fmt: skip
    third.current.symlink_to(first.adapter)
    assert run(third) == 0
    before = {line.file_ids: line.loss for line in read_evaluation(trunk.evaluation)}
    for line in read_evaluation(third.evaluation):
        assert line.loss["current"] == pytest.approx(before[line.file_ids]["current"], rel=1e-4)
        assert line.loss["current"] != pytest.approx(before[line.file_ids]["candidate"], rel=1e-4)


def test_on_a_trunk_without_a_published_adapter_the_base_is_current(first, tmp_path):
    second = make_run(
        tmp_path / "000002", short_recipe(), short_rows(8, start=30), short_rows(4, start=101),
        parent=first.adapter, run_id=2, manifest={"parent_version": None, "trunk": [1]},
    )  # fmt: skip
    assert run(second) == 0
    assert all(line.loss["current"] == line.loss["anchor"] for line in read_evaluation(second.evaluation))


def test_a_damaged_current_adapter_is_refused(first, tmp_path, capsys):
    second = make_run(
        tmp_path / "000002", short_recipe(), short_rows(8, start=30), short_rows(4, start=101),
        parent=first.adapter, run_id=2, manifest={"trunk": [1], "current_manifest_sha256": "0" * 64},
    )  # fmt: skip
    assert run(second) == 2
    assert "names a current adapter" in capsys.readouterr().err
