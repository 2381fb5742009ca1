"""A finished run's adapter, examined in a fresh process: each defect is a finding of its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from run_folder import make_run, run, short_recipe, short_rows, weights
from safetensors.torch import save_file

from trainer import examine as examination
from trainer.__main__ import main
from trainer.errors import UnusableInput
from trainer.evaluate.sandbox.bubblewrap import check_available
from trainer.examine import examine, loops
from trainer.recipe_file import dump_recipe, load_recipe
from trainer.run_dir import RunDirectory, read_json, sha256_file, write_json, write_manifest
from trainer.stop import StopRequest

WEIGHTS = "adapter_model.safetensors"
Change = Callable[[dict[str, torch.Tensor]], Any]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    directory = make_run(
        tmp_path_factory.mktemp("runs") / "000001", short_recipe(), short_rows(16), short_rows(6, start=101)
    )
    assert run(directory) == 0
    return directory


def copied(directory: RunDirectory, to: Path, change: Change | None = None) -> RunDirectory:
    """Copy a run, with changed weights and a manifest that fits them."""
    copy = RunDirectory(shutil.copytree(directory.root, to / "000001", symlinks=True))
    if change is not None:
        tensors = weights(copy.adapter)
        change(tensors)
        save_file(tensors, copy.adapter / WEIGHTS)
        (copy.adapter / "MANIFEST.json").unlink()
        write_manifest(copy.adapter)
    return copy


def examined(directory: RunDirectory) -> dict[str, Any]:
    examine(directory, StopRequest())
    return read_json(directory.examination)


def test_a_good_adapter_loads_changes_little_and_generates(first, tmp_path):
    directory = copied(first, tmp_path)
    assert main(["examine", str(directory.root)]) == 0
    found = read_json(directory.examination)
    assert "failure" not in found and found["run_id"] == 1
    assert found["weights"]["not_finite"] == []
    assert found["manifest_sha256"] == read_json(first.report)["adapter"]["manifest_sha256"]
    assert found["weights"]["changed"] == found["weights"]["tensors"] > 0
    assert 0 < found["norm"]["largest"] < 0.5 and found["norm"]["module"]
    generation = found["generation"]
    assert generation["prompts"] == 4 and generation["candidate"]["tokens"] > 0
    assert generation["candidate"]["leaking"] == 0
    assert found["measured_again"]["samples"] >= 2 and found["measured_again"]["largest_difference"] < 1e-3
    before = directory.examination.stat().st_mtime_ns
    assert main(["examine", str(directory.root)]) == 0
    assert directory.examination.stat().st_mtime_ns == before, "examined once"


def test_weights_that_are_not_finite_are_named_and_never_loaded(first, tmp_path, monkeypatch):
    monkeypatch.setattr(examination, "_used", lambda *_: pytest.fail("it was loaded"))
    name = next(name for name in weights(first.adapter) if "lora_B" in name)
    found = examined(copied(first, tmp_path, lambda tensors: tensors[name][0].fill_(torch.nan)))
    assert found["weights"]["not_finite"] == [name] and "norm" not in found


def test_an_adapter_without_effect_has_changed_nothing(first, tmp_path):
    def zero(tensors):
        for name, tensor in tensors.items():
            tensor.mul_(0 if "lora_B" in name else 1)

    found = examined(copied(first, tmp_path, zero))
    assert found["weights"]["changed"] == 0 and found["norm"]["largest"] == 0
    assert found["measured_again"]["largest_difference"] > 0.01, "the run measured other weights"


@pytest.mark.long
def test_with_a_parent_a_change_is_a_difference_from_it(first, tmp_path):
    second = make_run(
        tmp_path / "000002", short_recipe(), short_rows(8, start=40), short_rows(4, start=101),
        parent=first.adapter, run_id=2,
    )  # fmt: skip
    assert run(second) == 0
    assert examined(second)["weights"]["changed"] == len(weights(second.adapter))
    same = copied(second, tmp_path / "same", lambda tensors: tensors.update(weights(first.adapter)))
    (same.root / "parent").unlink()
    (same.root / "parent").symlink_to(first.adapter)
    assert examined(same)["weights"]["changed"] == 0


def test_the_norm_is_that_of_the_whole_change(first, tmp_path):
    once = examined(copied(first, tmp_path / "once"))["norm"]["largest"]

    def ten_times(tensors):
        for name, tensor in tensors.items():
            tensor.mul_(10 if "lora_B" in name else 1)

    assert examined(copied(first, tmp_path / "ten", ten_times))["norm"]["largest"] == pytest.approx(10 * once, rel=1e-5)


@pytest.mark.parametrize("missing", [WEIGHTS, "adapter_config.json"])
def test_a_folder_that_is_not_whole_is_a_finding(first, tmp_path, missing):
    directory = copied(first, tmp_path)
    (directory.adapter / missing).unlink()
    found = examined(directory)
    assert f"{missing} is missing" in found["failure"] and "generation" not in found


def test_a_folder_that_peft_cannot_load_is_a_finding(first, tmp_path):
    directory = copied(first, tmp_path, lambda tensors: None)
    (directory.adapter / "adapter_config.json").write_text("{}")
    (directory.adapter / "MANIFEST.json").unlink()
    write_manifest(directory.adapter)
    assert "not LoRA" in examined(directory)["failure"]


def test_leaked_control_tokens_are_counted(first, tmp_path, monkeypatch):
    from run_folder import tokenizer

    leak = tokenizer().convert_tokens_to_ids("<|fim_prefix|>")
    monkeypatch.setattr(
        examination, "answer_all", lambda _model, _tokenizer, prompts, **_: [[5, leak], *([5] for _ in prompts[1:])]
    )
    assert examined(copied(first, tmp_path))["generation"]["candidate"]["leaking"] == 1


@pytest.mark.parametrize(
    ("answer", "looping"),
    [
        ([7] * 48, True),
        ([*range(100), *[1, 2, 3] * 16], True),
        ([*range(16)] * 3, True),
        ([*range(17)] * 3, False),
        ([7] * 47, False),
        ([7] * 47 + [8], False),
    ],
)
def test_a_loop_repeats_at_most_16_tokens_over_48(answer, looping):
    assert loops(answer) is looping


def test_a_run_without_a_report_is_refused(first, tmp_path, capfd):
    directory = copied(first, tmp_path)
    directory.report.unlink()
    assert main(["examine", str(directory.root)]) == 2
    assert "it has no report.json" in capfd.readouterr().err


@pytest.mark.long
def test_the_recipes_suites_are_solved_by_candidate_and_current(first, tmp_path):
    try:
        check_available()
    except UnusableInput as error:
        pytest.skip(str(error))
    suite = tmp_path / "tiny.jsonl"
    tasks = [
        {"task_id": f"T/{n}", "prompt": f"def add_{n}(a, b):\n", "entry_point": f"add_{n}",
         "canonical_solution": "    return a + b\n", "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n"}
        for n in range(2)
    ]  # fmt: skip
    suite.write_text("".join(json.dumps(task) + "\n" for task in tasks))
    directory = copied(first, tmp_path)
    recipe = load_recipe(directory.recipe)
    recipe = replace(recipe, evaluation=replace(recipe.evaluation, suites=(str(suite),)))
    directory.recipe.write_text(dump_recipe(recipe))
    manifest = read_json(directory.manifest)
    manifest["files"]["recipe.yaml"] = sha256_file(directory.recipe)
    write_json(directory.manifest, manifest)
    found = examined(directory)["suites"]["01-tiny"]
    assert found["tasks"] == 2 and found["difference"] == 0 and found["p_value"] == 1
    assert found["candidate"] == found["current"] == 0.0, "the share of solved tasks"
    assert (directory.suites / "01-tiny" / "candidate" / "outcomes.jsonl").read_text().count("\n") == 2


def test_losses_that_are_not_finite_are_a_finding(first, tmp_path, monkeypatch):
    losses = iter([1.0, float("nan"), 1.0, 1.0])

    class Model:
        def __init__(self, *_, **__):
            self.eval = lambda: lambda *_, **__: (torch.tensor([next(losses)]), None)

    monkeypatch.setattr(examination, "LossModel", Model)
    directory = copied(first, tmp_path)
    assert examined(directory)["measured_again"]["largest_difference"] is None


def test_a_base_that_cannot_be_loaded_says_nothing_about_the_adapter(first, tmp_path, monkeypatch):
    def failing(*_):
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(examination, "load_kept", failing)
    directory = copied(first, tmp_path)
    with pytest.raises(OSError, match="Stale"):
        examined(directory)
    assert not directory.examination.exists()


def test_the_recipes_prompts_are_answered_by_candidate_and_base(first, tmp_path):
    def louder(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if "lora_B" in name:
                tensor.mul_(40)

    directory = copied(first, tmp_path, louder)
    recipe = load_recipe(directory.recipe)
    prompts = ("def read_lines(path):", "class A:")
    recipe = replace(recipe, tracking=replace(recipe.tracking, prompts=prompts, prompt_tokens=12))
    directory.recipe.write_text(dump_recipe(recipe))
    manifest = read_json(directory.manifest)
    manifest["files"]["recipe.yaml"] = sha256_file(directory.recipe)
    write_json(directory.manifest, manifest)
    examined(directory)
    found = read_json(directory.answers)
    assert found["run_id"] == 1 and [one["prompt"] for one in found["prompts"]] == list(prompts)
    first_answers = found["prompts"][0]
    assert first_answers["candidate"] and first_answers["base"], "both answered"
    assert first_answers["candidate"] != first_answers["base"], "the base answers without the adapter"
