"""Whole runs, from a run directory to its report, with every way to end."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from run_folder import (
    embedded,
    events,
    make_row,
    make_run,
    run,
    same,
    short_recipe,
    short_rows,
    short_run,
    weights,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

from service.gate.evidence import Evidence
from service.gate.judge import judge
from trainer import __main__, reading, train
from trainer.errors import Diverged
from trainer.events import Events
from trainer.model.base import TINY_FOLDER
from trainer.recipe import Gate
from trainer.recipe_file import dump_recipe
from trainer.records import read_outcomes
from trainer.run_dir import RunDirectory, held_lock, read_json, verify_manifest

LONG = {"training__num_epochs": 3, "evaluation__interval_fraction": 0.2, "evaluation__patience": 50}
"""Fifteen steps and five evaluations leave time to interrupt."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run with a row that is too short, a replayed row, and a held-out row of an earlier run."""
    rows = [*short_rows(19), make_row(50, "too\nshort\n")]
    held_out = [*short_rows(4, start=101), make_row(105, short_rows(1, start=105)[0].content, fresh=False)]
    directory = make_run(
        tmp_path_factory.mktemp("runs") / "000001", short_recipe(), rows, held_out, replay=short_rows(1, start=60)
    )
    assert run(directory) == 0
    return directory


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    directory = short_run(tmp_path_factory.mktemp("long") / "000001", short_recipe(**LONG))
    assert run(directory) == 0
    return directory


def start(directory: RunDirectory, **options) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "trainer", "run", str(directory.root)],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def wait_for(directory: RunDirectory, name: str, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not events(directory, name):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)


# --- what a run leaves ----------------------------------------------------------------------------------------


def test_the_report_says_what_happened(finished):
    report = read_json(finished.report)
    assert set(report) == {
        "format", "run_id", "stream", "recipe", "base", "parent_version", "steps", "early_stopped", "held_out",
        "evaluation", "train", "experts", "rows", "adapter", "seconds", "device", "versions", "phase",
        "energy_joules", "energy_source",
    }  # fmt: skip
    assert report["steps"]["total"] == report["steps"]["done"] == 5
    assert report["rows"] == {"trained": 19, "unused": 0, "rejected": 1, "held_out": 5, "replayed": 1}
    assert report["parent_version"] is None and report["base"]["model"] == "tiny-qwen2"
    evaluation = report["evaluation"]
    assert evaluation["anchor"] == evaluation["current"]
    assert [entry["step"] for entry in evaluation["history"]] == [0, 3, 5]
    best = min(evaluation["history"][1:], key=lambda entry: entry["loss"])
    assert report["steps"]["best"] == best["step"]
    assert report["held_out"] | {"tokens": 0, "stopping_tokens": 0} == {
        "samples": 4, "tokens": 0, "stopping_samples": 1, "stopping_tokens": 0, "disjoint": True
    }  # fmt: skip
    assert evaluation["candidate"]["loss"] < evaluation["current"]["loss"]
    assert set(report["seconds"]) == {"check", "samples", "model", "fit", "judge", "export"}


def test_tokens_and_rows_reconcile(finished):
    report = read_json(finished.report)
    outcomes = list(read_outcomes(finished.rows_outcome))
    assert [outcome.file_id for outcome in outcomes] == [*range(1, 20), 50, 60, *range(101, 106)]
    published = sum(o.tokens for o in outcomes if o.outcome in ("trained", "replayed"))
    assert published == report["train"]["tokens_published"]
    steps = events(finished, "step")
    best = report["steps"]["best"]
    assert published == sum(step["tokens"] for step in steps[:best])
    assert report["train"]["tokens_seen"] == steps[-1]["tokens_total"] == sum(step["tokens"] for step in steps)
    assert [(o.outcome, o.reason) for o in outcomes if o.file_id == 50] == [("rejected", "too_few_lines")]
    assert sum(o.tokens for o in outcomes if o.outcome == "held_out") == sum(
        report["held_out"][part] for part in ("tokens", "stopping_tokens")
    )


def test_events_report_the_run_in_order(finished):
    names = [event["event"] for event in events(finished)]
    assert names[0] == "started" and names[-1] == "finished"
    stages = [(event["stage"], event["state"]) for event in events(finished, "stage")]
    expected = ("check", "samples", "model", "fit", "judge", "export")
    assert [stage for stage, state in stages if state == "begin"] == [*expected]
    alone = [entry for entry in stages if entry[0] not in ("samples", "model")]
    assert alone == [(stage, state) for stage in ("check", "fit", "judge", "export") for state in ("begin", "end")]
    assert sorted(stages[2:6]) == sorted((stage, state) for stage in ("samples", "model") for state in ("begin", "end"))
    assert {event["which"] for event in events(finished, "evaluation")} == {"anchor", "current", "candidate"}
    (plan,) = events(finished, "plan")
    assert plan["steps_total"] == 5 and plan["samples"] == 20 and plan["trainable_parameters"] > 0
    assert (plan["checkpointing"], plan["offload_checkpoints"]) == ("none", "never")  # what `auto` means on a CPU
    assert plan["micro_batch_tokens"] == 2 * 384 and plan["predicted_gpu_bytes"] is None
    text = finished.events.read_text()
    assert "total +=" not in text and "combine" not in text


def test_the_adapter_loads_on_its_base_and_writes(finished):
    verify_manifest(finished.adapter)
    config = read_json(finished.adapter / "adapter_config.json")
    assert config["base_model_name_or_path"] == str(TINY_FOLDER) and config["inference_mode"] is True
    assert config["target_modules"] == sorted(config["target_modules"])  # a set's order would change from run to run
    base = AutoModelForCausalLM.from_pretrained(config["base_model_name_or_path"])
    model = PeftModel.from_pretrained(base, str(finished.adapter))
    tokenizer = AutoTokenizer.from_pretrained(str(finished.adapter))
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": "say"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**inputs, max_new_tokens=8)
    assert output.shape[1] > inputs["input_ids"].shape[1]
    assert not list(finished.root.rglob("*.bin")) and not list(finished.root.rglob("*.pt"))


def test_a_second_run_continues_from_the_first(finished, tmp_path):
    same_rows = [*short_rows(4, start=101), make_row(105, short_rows(1, start=105)[0].content, fresh=False)]
    directory = make_run(
        tmp_path / "000002", short_recipe(), short_rows(8, start=30), same_rows, parent=finished.adapter, run_id=2
    )
    assert run(directory) == 0
    first, second = read_json(finished.report)["evaluation"], read_json(directory.report)["evaluation"]
    assert second["anchor"]["loss"] == pytest.approx(first["anchor"]["loss"], abs=1e-6)
    assert second["current"]["loss"] == pytest.approx(first["candidate"]["loss"], abs=1e-4)
    assert second["candidate"]["loss"] < second["current"]["loss"]
    assert read_json(directory.report)["parent_version"] == 1


def test_the_same_run_twice_gives_the_same_adapter(tmp_path, finished):
    rows = [*short_rows(19), make_row(50, "too\nshort\n")]
    held_out = [*short_rows(4, start=101), make_row(105, short_rows(1, start=105)[0].content, fresh=False)]
    again = make_run(tmp_path / "a", short_recipe(), rows, held_out, replay=short_rows(1, start=60))
    assert run(again) == 0
    assert same(weights(again.adapter), weights(finished.adapter))
    files = ("adapter_config.json", "adapter_model.safetensors", "training_args.json")
    assert all((again.adapter / name).read_bytes() == (finished.adapter / name).read_bytes() for name in files)
    other = make_run(tmp_path / "b", short_recipe(), rows, held_out, seed=43)
    assert run(other) == 0
    assert not same(weights(other.adapter), weights(finished.adapter))


@pytest.mark.long
def test_full_checkpointing_on_the_host_gives_the_same_adapter(tmp_path):
    adapters = []
    for index, choice in enumerate(
        ({}, {"training__checkpointing": "full", "training__offload_checkpoints": "always"})
    ):
        directory = short_run(tmp_path / str(index), short_recipe(base__compute_dtype="float32", **choice))
        assert run(directory) == 0
        adapters.append(weights(directory.adapter))
    (plan,) = events(directory, "plan")
    assert (plan["checkpointing"], plan["offload_checkpoints"]) == ("full", "always")
    assert all(torch.allclose(adapters[0][name], adapters[1][name], atol=1e-5) for name in adapters[0])


def test_a_finished_run_is_left_alone(finished):
    before = finished.events.read_bytes()
    assert run(finished) == 0
    assert finished.events.read_bytes() == before


def test_rows_that_only_later_steps_saw_are_unused(tmp_path, monkeypatch):
    """The first evaluation is the best, so later steps are not published."""
    measure = train.HeldOut.measure
    calls = []

    def worse_each_time(self):
        calls.append(1)
        score = measure(self)
        return type(score)(loss=float(len(calls)), token_accuracy=0.0, tokens=score.tokens)

    monkeypatch.setattr(train.HeldOut, "measure", worse_each_time)
    directory = short_run(tmp_path / "run", short_recipe(evaluation__interval_fraction=0.2))
    assert run(directory) == 0
    report = read_json(directory.report)
    assert report["steps"] == {"total": 5, "done": 3, "best": 1, "result": 1} and report["early_stopped"]
    assert report["rows"]["trained"] == 4 and report["rows"]["unused"] == 16
    assert report["train"]["tokens_published"] == events(directory, "step")[0]["tokens"]
    assert report["train"]["tokens_published"] < report["train"]["tokens_seen"]


def test_if_the_last_weights_are_the_result_all_trained_rows_count(tmp_path, monkeypatch):
    """The first evaluation is the best, and training ends after three of five steps."""
    losses = iter(range(1, 10))
    measure = train.HeldOut.measure
    monkeypatch.setattr(train.HeldOut, "measure", lambda self: replace(measure(self), loss=float(next(losses))))
    recipe = short_recipe(training__max_steps=3, training__load_best=False, evaluation__interval_steps=1,
                          evaluation__patience=9, training__order="simple_first")  # fmt: skip
    directory = short_run(tmp_path / "run", recipe)
    assert run(directory) == 0
    report = read_json(directory.report)
    assert report["steps"] == {"total": 3, "done": 3, "best": 1, "result": 3}
    assert report["rows"]["trained"] == 12 and report["rows"]["unused"] == 8
    assert report["train"]["tokens_published"] == report["train"]["tokens_seen"]
    assert [step["steps_total"] for step in events(directory, "step")] == [3, 3, 3]


def test_epochs_count_each_time(uninterrupted):
    report = read_json(uninterrupted.report)
    outcomes = list(read_outcomes(uninterrupted.rows_outcome))
    best = report["steps"]["best"]
    assert best > 5
    tokens = {step["step"]: step["tokens"] for step in events(uninterrupted, "step")}
    assert sum(o.tokens for o in outcomes if o.outcome == "trained") == sum(tokens[s] for s in range(1, best + 1))


def test_a_run_without_a_single_sample_publishes_what_it_began_with(tmp_path):
    directory = make_run(tmp_path / "run", short_recipe(), [make_row(1, "a\n")], short_rows(2, start=101))
    assert run(directory) == 0
    report = read_json(directory.report)
    assert report["steps"] == {"total": 0, "done": 0, "best": 0, "result": 0} and report["train"]["loss"] is None
    assert report["evaluation"]["candidate"] == report["evaluation"]["current"]


# --- stopping and resuming ------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_closed_stdin_stops_the_run_and_a_start_resumes_it(tmp_path, uninterrupted):
    directory = short_run(tmp_path / "run", short_recipe(**LONG))
    process = start(directory, stdin=subprocess.PIPE)
    wait_for(directory, "step", process)
    process.stdin.close()
    process.stdin = None
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, (out, err)
    assert events(directory, "stopping")[-1]["reason"] == "stdin was closed"
    assert "Traceback" not in err and not directory.report.exists()
    assert run(directory) == 0
    assert events(directory, "started")[-1]["resumed_from_step"] >= 1
    assert same(weights(directory.adapter), weights(uninterrupted.adapter))
    left, right = read_json(directory.report), read_json(uninterrupted.report)
    assert left["evaluation"] == right["evaluation"] and left["train"] == right["train"]


def test_a_killed_run_resumes_from_its_checkpoint(tmp_path, uninterrupted):
    directory = short_run(tmp_path / "run", short_recipe(**LONG))
    process = start(directory, stdin=subprocess.DEVNULL)
    wait_for(directory, "checkpoint", process)
    process.kill()
    process.communicate()
    with directory.events.open("a") as file:
        file.write('{"time": 1, "event": "st')
    assert run(directory) == 0
    assert events(directory, "started")[-1]["resumed_from_step"] in (3, 6, 9, 12)
    assert same(weights(directory.adapter), weights(uninterrupted.adapter))
    assert read_json(directory.report)["evaluation"] == read_json(uninterrupted.report)["evaluation"]


@pytest.mark.parametrize("moment", ["samples", "model"])
def test_a_signal_before_the_first_step_ends_at_once(tmp_path, monkeypatch, moment):
    directory = short_run(tmp_path / "run")
    module, name = {"samples": (reading, "load_tokenizer"), "model": (train, "load_kept")}[moment]
    original = getattr(module, name)

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    monkeypatch.setattr(module, name, interrupted)
    assert run(directory) == 75
    assert events(directory, "stopping")[-1]["reason"] == "SIGTERM was received"
    assert not events(directory, "step") and not events(directory, "failed")
    monkeypatch.undo()
    assert run(directory) == 0


def test_a_signal_during_an_evaluation_keeps_the_steps(tmp_path, monkeypatch):
    directory = short_run(tmp_path / "run")
    measure = train.HeldOut.measure

    def interrupted(self):
        if events(directory, "step"):
            os.kill(os.getpid(), signal.SIGTERM)
        return measure(self)

    monkeypatch.setattr(train.HeldOut, "measure", interrupted)
    assert run(directory) == 75
    assert events(directory, "checkpoint")[-1]["step"] == 3
    monkeypatch.undo()
    assert run(directory) == 0
    assert events(directory, "started")[-1]["resumed_from_step"] == 3
    assert [entry["step"] for entry in read_json(directory.report)["evaluation"]["history"]] == [0, 3, 5]


def test_dev_null_as_stdin_does_not_stop_a_run(monkeypatch):
    with Path(os.devnull).open() as null:
        from trainer.stop import _held_open

        assert not _held_open(null.fileno())
    read, write = os.pipe()
    assert _held_open(read)
    os.close(read), os.close(write)
    assert not _held_open(read)


def test_a_run_that_another_process_trains_is_not_touched(tmp_path, monkeypatch, capsys):
    directory = short_run(tmp_path / "run")
    monkeypatch.setattr(__main__, "LOCK_WAIT_SECONDS", 0.2)
    with held_lock(directory.lock, wait_seconds=1):
        assert run(directory) == 75
    assert "held by another process" in capsys.readouterr().err
    assert not directory.events.exists()


def test_the_report_comes_last(tmp_path, monkeypatch):
    """When the report exists, the outcomes exist too."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    directory = short_run(tmp_path / "run")
    monkeypatch.setattr(train, "write_outcomes", full)
    assert run(directory) == 1
    assert events(directory, "step") and not directory.report.exists()


# --- input that cannot be used --------------------------------------------------------------------------------


def fails(directory: RunDirectory, capsys, *words: str) -> None:
    assert run(directory) == 2
    (failed,) = events(directory, "failed")
    err = capsys.readouterr().err
    assert failed["code"] == 2 and "Traceback" not in err
    for word in words:
        assert word in failed["message"] and word in err


def test_tampered_rows_are_refused(tmp_path, capsys):
    directory = short_run(tmp_path / "run")
    directory.rows.write_text(directory.rows.read_text().replace("total", "totals", 1))
    fails(directory, capsys, "rows.jsonl has changed")


def test_an_input_that_the_manifest_does_not_name_is_refused(tmp_path, capsys):
    directory = short_run(tmp_path / "run")
    directory.replay.write_text("")
    fails(directory, capsys, "does not list replay.jsonl")


def test_a_recipe_with_bad_keys_is_refused_with_all_of_them(tmp_path, capsys):
    directory = short_run(tmp_path / "run")
    text = dump_recipe(short_recipe()).replace("batch_size: 2", "batch_size: 0").replace("alpha: 8", "alpha: x")
    directory.recipe.write_text(text)
    manifest = read_json(directory.manifest)
    from trainer.run_dir import sha256_file, write_json

    manifest["files"]["recipe.yaml"] = sha256_file(directory.recipe)
    write_json(directory.manifest, manifest)
    fails(directory, capsys, "training.batch_size", "lora.alpha")


@pytest.mark.parametrize(
    ("overrides", "manifest", "words"),
    [
        ({"lora__targets": ["w1"]}, {}, ["w1 occurs nowhere", "q_proj"]),
        ({"base__revision": "0" * 40}, {}, ["is pinned to 0000"]),
        ({"base__model": "/nowhere/at/all"}, {}, ["/nowhere/at/all does not exist"]),
        ({"data__builders": {"magic": 1.0}}, {}, ["magic is not one of"]),
        ({}, {"base": {"model": "other", "revision": "x"}}, ["has the base"]),
        ({}, {"parent_manifest_sha256": "0" * 64}, ["parent is missing"]),
        ({}, {"seed": None}, ["seed is None"]),
    ],
)
def test_inputs_that_contradict_each_other_are_refused(tmp_path, capsys, overrides, manifest, words):
    fails(short_run(tmp_path / "run", short_recipe(**overrides), manifest=manifest), capsys, *words)


def test_a_parent_that_changed_is_refused(tmp_path, capsys, finished):
    import shutil

    parent = tmp_path / "parent"
    shutil.copytree(finished.adapter, parent)
    directory = short_run(tmp_path / "run", parent=parent)
    (parent / "adapter_model.safetensors").write_bytes(b"other")
    fails(directory, capsys, "parent adapter cannot be used", "adapter_model.safetensors has changed")


def test_a_parent_of_another_shape_is_refused(tmp_path, capsys, finished):
    fails(short_run(tmp_path / "run", short_recipe(lora__rank=8), parent=finished.adapter), capsys, "rank 4")


def test_held_out_rows_without_a_sample_are_rejected_and_nothing_is_fitted(tmp_path):
    directory = make_run(tmp_path / "run", short_recipe(), short_rows(4), [make_row(9, "a\n")])
    assert run(directory) == 0
    outcomes = {o.file_id: (o.outcome, o.reason) for o in read_outcomes(directory.rows_outcome)}
    assert outcomes == {9: ("rejected", "too_few_lines"), **dict.fromkeys(range(1, 5), ("unused", None))}
    report = read_json(directory.report)
    assert report["evaluation"] is None and report["rows"]["trained"] == 0
    assert judge(Evidence(run_id=1, gate=Gate(), report=report)).decision == "refuse"
    assert events(directory, "unmeasured")[0]["reasons"] == "too_few_lines: 1"


def test_a_file_that_occurs_twice_is_refused(tmp_path, capsys):
    directory = make_run(tmp_path / "run", short_recipe(), short_rows(4), short_rows(1))
    fails(directory, capsys, "file_id 1 occurs more than once")


def test_a_folder_that_is_not_a_run_is_refused(tmp_path, capsys):
    assert __main__.run_command(tmp_path / "nothing") == 2
    assert "is not a folder" in capsys.readouterr().err
    directory = RunDirectory(tmp_path)
    fails(directory, capsys, "has no readable MANIFEST.json")


# --- other ends -----------------------------------------------------------------------------------------------


def test_divergence_and_bugs_have_their_own_codes(tmp_path, monkeypatch, capsys):
    directory = short_run(tmp_path / "run")

    def end(error):
        def raise_it(*_):
            raise error

        monkeypatch.setattr(train.Fit, "run", raise_it)
        code = run(directory)
        return code, events(directory, "failed")[-1]["code"], "Traceback" in capsys.readouterr().err

    assert end(Diverged("loss is nan")) == (4, 4, False)
    assert end(torch.OutOfMemoryError("CUDA out of memory")) == (3, 3, True)
    assert end(ZeroDivisionError("oops")) == (1, 1, True)


def test_a_learning_rate_that_blows_up_ends_with_4(tmp_path):
    recipe = short_recipe(
        training__learning_rate=1.0, training__max_grad_norm=0.0, training__optimizer="adamw", training__num_epochs=40,
        evaluation__patience=1000,
    )  # fmt: skip
    directory = short_run(tmp_path / "run", recipe)
    poison = train.load_model

    def poisoned(*arguments):
        loaded = poison(*arguments)
        next(p for p in loaded.model.parameters() if p.requires_grad).data[0, 0] = float("inf")
        return loaded

    train.load_model = poisoned
    try:
        assert run(directory) == 4
    finally:
        train.load_model = poison
    (event,) = events(directory, "non_finite")
    assert event["what"] and not directory.report.exists()


def test_prepare_prints_the_base_as_json(tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(embedded()))
    assert __main__.main(["prepare", str(path)]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["model"] == "tiny-qwen2" and found["revision"] == embedded().base.revision
    assert 2_000_000 < found["parameters"] < 3_000_000


@pytest.mark.parametrize(
    ("overrides", "word"),
    [({"lora__targets": ["w1"]}, "w1"), ({"base__model": "/nowhere"}, "/nowhere"), (None, "unknown key")],
)
def test_prepare_explains_what_cannot_be_used(tmp_path, capsys, overrides, word):
    path = tmp_path / "recipe.yaml"
    path.write_text("name: a\nstream: b\nnonsense: 1\n" if overrides is None else dump_recipe(embedded(**overrides)))
    assert __main__.main(["prepare", str(path)]) == 2
    captured = capsys.readouterr()
    assert word in captured.err and "Traceback" not in captured.err and not captured.out


def test_prepare_says_that_the_hub_cannot_be_reached(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(embedded(base__model="nobody/nothing")))
    assert __main__.main(["prepare", str(path)]) == 2
    assert "cannot be reached" in capsys.readouterr().err


def test_a_half_written_line_is_not_continued(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "st')
    Events(path).emit("started", pid=1)
    assert list(read_lines_after(path)) == ["started"]


def read_lines_after(path):
    from trainer.records import EventTail

    return [event["event"] for event in EventTail(path).new()]
