"""A run on a mixture of experts: what it reports about its experts, the alarm, and trained routers from run to run."""

from __future__ import annotations

import functools
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from fitting import checked
from peft import get_peft_model
from run_folder import events, make_run, run, short_recipe, short_rows, weights
from test_run_view import RUN
from toys import toy, toy_recipe, toy_samples
from transformers import AutoModelForCausalLM

from service.cli.expert_map import heat
from service.cli.run_view import print_run
from service.cycle.watch import Watcher
from service.start import adapter_shape
from service.web.board import Board, Snapshot
from trainer import __main__
from trainer.adapters.checkpoints import as_adapter
from trainer.adapters.merge import merge
from trainer.errors import UnusableInput
from trainer.evaluate.held_out import HeldOut
from trainer.fit.checkpoint import checkpoints
from trainer.fit.expert_interval import ExpertInterval, entropy
from trainer.fit.progress import Progress
from trainer.model.load import load_base, load_tokenizer
from trainer.model.lora import add_adapter, load_adapter, lora_config, trained_routers
from trainer.model.mixture import routers
from trainer.recipe_file import dump_recipe
from trainer.run_dir import RunDirectory
from trainer.stop import StopRequest
from trainer.train import load_model

CPU = torch.device("cpu")
GATES = [f"model.layers.{layer}.mlp.gate" for layer in range(2)]


def mixture_run(root: Path, recipe: Any, **options: Any) -> RunDirectory:
    return make_run(root, recipe, short_rows(12), short_rows(4, start=101), **options)


@functools.cache
def collapsed_toy() -> Path:
    """Return a toy whose routers send every token to the experts 0 and 1."""
    folder = Path(tempfile.mkdtemp(prefix="toy-")) / "collapsed"
    model = AutoModelForCausalLM.from_pretrained(str(toy("mixtral")))
    with torch.no_grad():
        model.model.embed_tokens.weight.add_(1.0)  # hidden states share a direction, which the routers look at
        for router in routers(model).values():
            router.weight.zero_()
            router.weight[0], router.weight[1] = 0.5, 0.25
    model.save_pretrained(folder)
    load_tokenizer(toy_recipe("mixtral").base).save_pretrained(folder)
    return folder


@functools.cache
def router_run() -> RunDirectory:
    """Return a finished run that trained routers, with its checkpoints."""
    root = Path(tempfile.mkdtemp(prefix="run-")) / "run"
    directory = mixture_run(root, toy_recipe("mixtral", moe__freeze_router=False))
    assert run(directory) == 0
    return directory


# --- what is reported ---------------------------------------------------------------------------------------------


def test_a_run_reports_each_interval_and_the_loss_of_each_step(tmp_path):
    directory = mixture_run(
        tmp_path / "run",
        toy_recipe("mixtral", tracking__tensorboard=True, training__learning_rate=0.001, moe__collapse_share=1.0),
    )
    assert run(directory) == 0
    steps, found = events(directory, "step"), events(directory, "experts")
    assert all(1.5 < step["aux_loss"] < 8 for step in steps)
    evaluated = [e["step"] for e in events(directory, "evaluation") if e["which"] == "candidate" and "part" not in e]
    assert [event["step"] for event in found] == evaluated[1:]
    assert sum(event["steps"] for event in found) == len(steps)
    assert sum(event["tokens"] for event in found) == steps[-1]["tokens_total"]
    for layer in found[-1]["layers"]:
        assert len(layer["shares"]) == 8 and sum(layer["shares"]) == pytest.approx(2.0, abs=1e-3)
        assert 0 < layer["entropy"] <= 1
    report = json.loads(directory.report.read_text())
    assert report["experts"] == {key: found[-1][key] for key in report["experts"]}
    assert not events(directory, "expert_collapse")
    logged = b"".join(path.read_bytes() for path in (directory.root / "tensorboard").rglob("*tfevents*"))
    assert b"experts/layer_01/entropy" in logged and b"train/aux_loss" in logged


def test_nothing_is_reported_for_a_dense_base_or_if_it_is_off(tmp_path):
    off = toy_recipe("mixtral", moe__auxiliary_loss_weight=0.0, moe__log_experts=False)
    for name, recipe in (("dense", toy_recipe("llama")), ("off", off)):
        directory = mixture_run(tmp_path / name, recipe)
        assert run(directory) == 0
        assert not events(directory, "experts") and "aux_loss" not in events(directory, "step")[0]
        assert json.loads(directory.report.read_text())["experts"] is None


def test_a_resume_goes_on_counting():
    progress = Progress()
    progress.routed.add(tokens=10, auxiliary=2.0, counts=[[10, 6, 4, 0]])
    again = Progress.from_json(json.loads(json.dumps(progress.as_json())))
    again.routed.add(tokens=10, auxiliary=3.0, counts=[[10, 10, 0, 0]])
    found = again.routed.summary(2, step=7)
    assert found["layers"] == [
        {"shares": [1.0, 0.8, 0.2, 0.0], "entropy": pytest.approx(0.6805, abs=1e-4), "dead": [3]}
    ]
    assert (found["steps"], found["tokens"], found["aux_loss"]) == (2, 20, 2.5)
    old = progress.as_json()
    del old["routed"], old["experts"]
    assert Progress.from_json(old).routed == ExpertInterval()


def test_the_entropy_of_balanced_and_of_collapsed_experts():
    assert entropy([5] * 8) == pytest.approx(1.0)
    assert entropy([0, 7, 0, 0]) == 0.0


def test_routers_that_collapse_raise_an_alarm_once(tmp_path):
    directory = mixture_run(
        tmp_path / "run", toy_recipe("mixtral", folder=collapsed_toy(), training__learning_rate=1e-4)
    )
    assert run(directory) == 0
    alarms = events(directory, "expert_collapse")
    assert [(a["layer"], a["expert"]) for a in alarms] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert all(alarm["share"] > 0.9 and alarm["collapse_share"] == 0.75 for alarm in alarms)
    assert len(events(directory, "experts")) > 1
    assert events(directory, "experts")[0]["layers"][0]["dead"] == [2, 3, 4, 5, 6, 7]
    assert all(step["aux_loss"] == pytest.approx(8.0, abs=0.2) for step in events(directory, "step"))


def test_the_service_warns_and_says_what_to_do(tmp_path, caplog):
    directory = RunDirectory(tmp_path)
    directory.events.touch()
    watcher = Watcher(directory, 5, Board(Snapshot()))
    watcher.skip_history()
    watcher.read()
    layers = [{"shares": [1.0, 0.6, 0.4, 0.0], "entropy": 0.7, "dead": [3]}]
    lines = [
        {"time": 1, "event": "experts", "step": 4, "aux_loss": 3.0, "layers": layers},
        {"time": 1, "event": "expert_collapse", "step": 4, "layer": 0, "expert": 0, "share": 1.0},
    ]
    directory.events.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with caplog.at_level(logging.INFO):
        watcher.read()
    use, alarm = caplog.records
    assert "Expert use" in use.getMessage() and use.levelno == logging.INFO
    assert alarm.levelno == logging.WARNING
    for advice in ("moe.auxiliary_loss_weight", "moe.freeze_router"):
        assert advice in alarm.getMessage()


def test_the_map_of_the_experts_is_drawn(capsys):
    assert heat([0.25, 0.5, 0.125, 0.0], 1) == "▒▒██░░  "
    layers = [{"shares": [1.0, 0.6, 0.4, 0.0], "entropy": 0.7123, "dead": [3]}]
    experts = {"step": 9, "steps": 3, "tokens": 12_345, "aux_loss": 2.5, "top_k": 2, "layers": layers}
    print_run(replace(RUN, report={"experts": experts}))
    shown = capsys.readouterr().out
    assert "12,345 tokens" in shown and "100.0% on expert 0" in shown and "0.712" in shown
    print_run(replace(RUN, report={"experts": None}))


# --- trained routers ----------------------------------------------------------------------------------------------


def test_routers_are_frozen_by_default(tmp_path):
    adapted = add_adapter(load_base(toy_recipe("mixtral").base, CPU), toy_recipe("mixtral").lora, parent=None, seed=0)
    assert not trained_routers(adapted)
    trained = {name.split(".")[-3] for name, p in adapted.named_parameters() if p.requires_grad}
    assert trained == {"lora_A", "lora_B"}


def test_a_trained_router_is_saved_and_changed():
    saved = weights(router_run().adapter)
    base = routers(load_base(toy_recipe("mixtral").base, CPU))
    for name in GATES:
        assert not torch.allclose(saved[f"base_model.model.{name}.weight"], base[name].weight)
    config = json.loads((router_run().adapter / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["gate"]


def test_the_base_is_measured_with_its_own_routers():
    """The anchor of a run with trained routers is that of a run without."""
    recipe = toy_recipe("mixtral", moe__freeze_router=False)
    samples = toy_samples("mixtral", 3, start=101)
    losses = []
    for one, parent in ((recipe, router_run().adapter), (toy_recipe("mixtral"), None)):
        loaded = load_model(checked(one, parent=parent))
        held_out = HeldOut(loaded.accelerator, loaded.model, samples, budget=900, stop=StopRequest())
        losses.append((held_out.measure_base().loss, held_out.measure().loss))
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-6)
    assert losses[0][1] < losses[0][0] - 0.05


def test_the_next_run_continues_from_trained_routers(tmp_path):
    recipe = toy_recipe("mixtral", moe__freeze_router=False)
    parent = router_run().adapter
    loaded = load_model(checked(recipe, parent=parent))
    state = weights(parent)
    for name, wrapper in trained_routers(loaded.model.model.get_base_model()).items():
        torch.testing.assert_close(wrapper.modules_to_save["default"].weight, state[f"base_model.model.{name}.weight"])
    directory = mixture_run(tmp_path / "second", recipe, parent=parent, run_id=2)
    assert run(directory) == 0
    with pytest.raises(UnusableInput, match=r"trained routers \['gate'\] instead of \[\]"):
        load_model(checked(toy_recipe("mixtral"), parent=parent))


def test_a_resume_goes_on_with_routers_and_counts(tmp_path):
    """The adapter of a run that lost its second half is that of an uninterrupted one. So is what it says of experts."""
    recipe = toy_recipe("mixtral", moe__freeze_router=False, training__keep_checkpoints=9, training__checkpoint_steps=4)
    directory = mixture_run(tmp_path / "run", recipe)
    assert run(directory) == 0
    expected, report = weights(directory.adapter), json.loads(directory.report.read_text())
    assert report["steps"]["done"] == 12
    for path in sorted(checkpoints(directory.checkpoints)):
        if int(path.name[-6:]) > 8:
            shutil.rmtree(path)
    shutil.rmtree(directory.adapter)
    directory.report.unlink()
    assert run(directory) == 0
    assert events(directory, "started")[-1]["resumed_from_step"] == 8
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(directory.adapter).items())
    assert json.loads(directory.report.read_text())["experts"] == report["experts"]


@pytest.mark.parametrize("dtype", ["auto", "float16"])
def test_merging_writes_the_trained_routers(dtype, tmp_path):
    recipe = toy_recipe("mixtral", moe__freeze_router=False)
    merged = merge(recipe, router_run().adapter, tmp_path / "merged", dtype=dtype)
    assert merged.modules == 2 * 4 + 2 and merged.logits.same
    model = AutoModelForCausalLM.from_pretrained(str(tmp_path / "merged"))
    saved = weights(router_run().adapter)
    for name, router in routers(model).items():
        expected = saved[f"base_model.model.{name}.weight"].to(router.weight.dtype)
        assert router.weight.dtype in (torch.bfloat16, torch.float16) and torch.equal(router.weight, expected)


def test_whole_copies_of_other_modules_are_not_merged(tmp_path):
    recipe = toy_recipe("mixtral")
    config = replace(lora_config(recipe.lora), modules_to_save=["post_attention_layernorm"])
    get_peft_model(load_base(recipe.base, CPU), config).save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(UnusableInput, match=r"whole copy of .*post_attention_layernorm"):
        merge(recipe, tmp_path / "adapter", tmp_path / "merged")


def test_an_adapter_with_routers_is_examined():
    assert __main__.main(["examine", str(router_run().root)]) == 0
    found = json.loads(router_run().examination.read_text())
    assert "failure" not in found and found["weights"]["tensors"] == 8
    assert found["measured_again"]["samples"] >= 3 and found["measured_again"]["largest_difference"] < 1e-4


def test_a_checkpoint_with_routers_becomes_an_adapter(tmp_path):
    folder = as_adapter(sorted(checkpoints(router_run().checkpoints))[-1], tmp_path / "adapter")
    adapted = load_adapter(load_base(toy_recipe("mixtral", base__compute_dtype="bfloat16").base, CPU), folder)
    assert len(trained_routers(adapted)) == 2
    assert adapted(input_ids=torch.arange(8)[None]).logits.isfinite().all()


@pytest.fixture
def other_precision() -> Iterator[None]:
    """Let a test train in 16 bits, although accelerate keeps a process to one precision."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_routers_are_trained_on_a_base_in_16_bits(quantization, tmp_path, other_precision):
    recipe = toy_recipe("mixtral", quantization, moe__freeze_router=False, base__compute_dtype="bfloat16")
    directory = mixture_run(tmp_path / "run", recipe)
    assert run(directory) == 0
    assert __main__.main(["examine", str(directory.root)]) == 0
    found = json.loads(directory.examination.read_text())
    assert "failure" not in found and found["measured_again"]["largest_difference"] < 0.05


def test_a_stream_is_bound_to_trained_routers_only_if_there_are_any():
    shape = adapter_shape(toy_recipe("mixtral"))
    assert sorted(shape) == ["alpha", "rank", "targets"]  # as streams were bound before
    assert adapter_shape(toy_recipe("mixtral", moe__freeze_router=False)) == shape | {"routers": "trained"}


def test_a_recipe_that_trains_the_routers_of_a_dense_base_is_refused(tmp_path, capsys):
    recipe = short_recipe(moe__freeze_router=False)
    path = tmp_path / "r.yaml"
    path.write_text(dump_recipe(recipe))
    assert __main__.main(["prepare", str(path)]) == 2
    assert "moe.freeze_router: false, but tiny-qwen2 has no experts" in capsys.readouterr().err
    directory = mixture_run(tmp_path / "run", recipe)
    assert run(directory) == 2
    assert "Set it to true" in events(directory, "failed")[0]["message"]
    assert [stage["stage"] for stage in events(directory, "stage")] == ["check"]
