"""The choice among plans: the arithmetic for the 14B, what fits, and the message when nothing fits."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from planning import recipe_for
from run_folder import RECIPES, embedded

from trainer import __main__
from trainer.errors import UnusableInput
from trainer.model.shapes import QWEN_SHAPES, architecture, known_architecture, known_size
from trainer.plan.cards import CARDS, DEFAULT_CARD, GIB, card_named
from trainer.plan.choose import changes_that_fit, fastest_fitting, possible_plans, smallest_plan, with_choice
from trainer.plan.device import fitted
from trainer.plan.memory import Choice, layer_bytes, sizes_of
from trainer.plan.model import NotPlanned, read_model
from trainer.plan.show import bar, table
from trainer.plan.speed import flops_per_token
from trainer.recipe_file import dump_recipe, load_recipe

PROGRAM = "from service.cli.main import main; main()"
ROOT = Path(__file__).parents[2]
DEFAULT = load_recipe(RECIPES / "qwen-5090.yaml")
CARD = CARDS["rtx-5090"]
PARAMETERS = {
    "0.5B": 494_032_768, "1.5B": 1_543_714_304, "3B": 3_085_938_688,
    "7B": 7_615_616_512, "14B": 14_770_033_664, "32B": 32_763_876_352,
}  # fmt: skip
"""Parameter counts from the Hub."""


@pytest.fixture(scope="module")
def big():
    return read_model(known_architecture("14B"), DEFAULT.lora)


@pytest.fixture
def no_hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")


def with_training(recipe, **changes):
    return replace(recipe, training=replace(recipe.training, **changes))


@pytest.mark.parametrize("size", QWEN_SHAPES)
def test_a_known_shape_has_the_published_count(size):
    assert sum(p.numel() for p in known_architecture(size).parameters()) == PARAMETERS[size]


def test_names_of_known_shapes():
    assert known_size("Qwen/Qwen2.5-Coder-14B-Instruct") == known_size("Qwen/Qwen2.5-14B") == "14B"
    for other in ("Qwen/Qwen2.5-72B", "Qwen/Qwen3-14B", "me/Qwen2.5-14B", "Qwen/Qwen2.5-Coder-14B-Instruct-AWQ"):
        assert known_size(other) is None


def test_without_the_hub_known_shapes_are_used_and_reported(no_hub):
    skeleton, source = architecture(replace(DEFAULT.base, revision=None))
    assert skeleton.config.hidden_size == 5120 and "cannot be reached" in source
    with pytest.raises(UnusableInput, match="is unknown"):
        architecture(replace(DEFAULT.base, model="nobody/nothing"))


def test_the_static_memory_of_the_14b_matches_the_design(big):
    """DESIGN, section 6: 6.35 + 2.90 + 4.10 + 4.10 + 2.05 = 19.5 GiB."""
    plan = possible_plans(big, DEFAULT, CARD)[0]
    gib = {line.name: line.bytes / GIB for line in plan.lines}
    assert gib["weights (NF4)"] + gib["quantization constants"] == pytest.approx(6.35, abs=0.01)
    assert gib["embeddings"] + gib["output head"] == pytest.approx(2.90, abs=0.01)
    assert gib["adapter (float32)"] == gib["gradients (float32)"] == pytest.approx(4.10, abs=0.01)
    assert gib["optimizer (adamw_8bit)"] == pytest.approx(2.05, rel=0.02)  # and its scales: 1.6 %
    static = sum(line.bytes for line in plan.lines if line.kind in ("static", "paged")) / GIB
    assert static == pytest.approx(19.5, abs=0.05)


def test_the_flops_of_the_14b_match_the_design(big):
    """DESIGN, section 6: 64 to 70 GFLOP a token, 93 to 100 with full recomputation."""
    costs = {
        policy: flops_per_token(big, DEFAULT, Choice(micro_batch_tokens=4096, checkpointing=policy, offload=False))
        / 1e9
        for policy in ("none", "selective", "full")
    }
    assert 64 <= costs["none"] <= 70 and 93 <= costs["full"] <= 100
    assert costs["none"] < costs["selective"] < costs["full"]


def test_the_figure_in_the_policies_docstring_is_right(big):
    import trainer.model.checkpointing as policies

    kib = layer_bytes(big, sizes_of(DEFAULT, element=2)) / 1024
    assert f"everything: {kib:.0f} KiB" in (policies.__doc__ or "")


def test_the_default_recipe_fits_its_card_and_its_step_is_unchanged(big):
    plans = possible_plans(big, DEFAULT, CARD)
    plan = fastest_fitting(plans, int(31.3 * GIB))
    assert plan is not None and plan.peak_bytes <= 31.3 * GIB
    assert plan.choice.micro_batch_tokens * plan.accumulation == 16 * 4096
    changed = with_choice(DEFAULT, plan).training
    assert changed.batch_size * changed.gradient_accumulation_steps == 16
    assert (changed.checkpointing, changed.offload_checkpoints) == ("full", "never")


def test_a_larger_card_keeps_more(big):
    speeds = []
    for name in ("rtx-5090", "a100-80", "h200"):
        plan = fastest_fitting(possible_plans(big, DEFAULT, CARD), int(CARDS[name].vram_gib * GIB))
        assert plan is not None
        speeds.append(plan.tokens_per_second)
    assert speeds == sorted(set(speeds))


def test_values_named_in_the_recipe_are_kept(big):
    named = with_training(DEFAULT, checkpointing="full", offload_checkpoints="always")
    assert {(p.choice.checkpointing, p.choice.offload) for p in possible_plans(big, named, CARD)} == {("full", True)}
    sizes = {plan.choice.micro_batch_tokens for plan in possible_plans(big, named, CARD)}
    assert sizes == {4096, 2 * 4096, 4 * 4096}  # three does not divide 16 samples per step


def test_if_nothing_fits_each_suggested_change_fits(big):
    vram = 20 * GIB
    assert fastest_fitting(possible_plans(big, DEFAULT, CARD), vram) is None
    changes = changes_that_fit(big, DEFAULT, CARD, vram)
    assert changes[:2] == ["training.adapter_dtype: bfloat16", "lora.rank: 128"]
    smaller = replace(DEFAULT, lora=replace(DEFAULT.lora, rank=128))
    assert fastest_fitting(possible_plans(big, smaller, CARD), vram) is not None
    least = smallest_plan(possible_plans(big, DEFAULT, CARD)).peak_bytes
    assert changes[-1] == f"a card with {least / GIB:.1f} GiB"
    assert fastest_fitting(possible_plans(big, DEFAULT, CARD), least) is not None
    stubborn = with_training(DEFAULT, checkpointing="none", optimizer="adamw")
    assert "training.checkpointing: auto" in changes_that_fit(big, stubborn, CARD, 30 * GIB)


def test_the_table_adds_up_and_the_bar_is_full(big):
    plan = possible_plans(big, DEFAULT, CARD)[-1]
    *lines, total = table(plan)
    counted = [line for line in lines if not line.endswith(")")]
    assert sum(float(line.split()[-1]) for line in counted) == pytest.approx(float(total.split()[-2]), abs=0.1)
    drawn, legend = bar(plan, 40 * GIB)
    free = drawn.strip().count("·") / 60
    assert free == pytest.approx(1 - plan.peak_bytes / (40 * GIB), abs=0.04)
    named = sum(float(part.split()[-1]) for part in legend.strip().split("   "))
    assert named == pytest.approx(40, abs=0.3)  # every line belongs to one segment of the bar


def test_devices_are_recognised_by_name():
    assert card_named("NVIDIA GeForce RTX 5090") == "rtx-5090"
    assert card_named("NVIDIA A100-SXM4-80GB") == "a100-80"
    assert card_named("NVIDIA H100 80GB HBM3") == "h100"
    assert card_named("NVIDIA H200") == "h200"
    assert card_named("Something else") == DEFAULT_CARD


def test_a_mixture_is_not_planned():
    from transformers import AutoModelForCausalLM, MixtralConfig

    config = MixtralConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=128, num_local_experts=2,
    )  # fmt: skip
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    with pytest.raises(NotPlanned, match=r"training\.checkpointing"):
        read_model(skeleton, replace(DEFAULT.lora, targets=("q_proj", "v_proj")))


# --- what `auto` becomes --------------------------------------------------------------------------------------


def test_on_a_cpu_auto_is_none():
    recipe, plan = fitted(embedded(), torch.device("cpu"))
    assert plan is None
    assert (recipe.training.checkpointing, recipe.training.offload_checkpoints) == ("none", "never")
    named, plan = fitted(embedded(training__checkpointing="full"), torch.device("cpu"))
    assert plan is None
    assert (named.training.checkpointing, named.training.offload_checkpoints) == ("full", "never")


@pytest.mark.parametrize(("free_gib", "policy"), [(139, "none"), (0.8, "selective"), (0.6, "full"), (0.01, "full")])
def test_on_a_gpu_auto_is_what_fits_the_free_memory(free_gib, policy, monkeypatch):
    """The device is asked only for its free memory and its name."""
    free = int(free_gib * GIB)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 140 * GIB))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    wide = recipe_for("tiny-qwen2", data__max_length=16_384, training__batch_size=4)
    recipe, plan = fitted(wide, torch.device("cuda"))
    assert plan is not None and recipe.training.checkpointing == policy
    training = recipe.training
    assert training.batch_size * training.gradient_accumulation_steps == 8
    assert (plan.allocated_bytes <= free) == (free_gib > 0.01)


def test_named_values_need_no_plan(no_hub):
    named = with_training(DEFAULT, checkpointing="full", offload_checkpoints="never")
    assert fitted(named, torch.device("cuda")) == (named, None)


# --- the command ----------------------------------------------------------------------------------------------


def plan_json(capsys, *arguments: str) -> tuple[int, dict]:
    code = __main__.main(["plan", *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_the_command_says_what_fits(no_hub, capsys):
    path = str(RECIPES / "qwen-5090.yaml")
    code, facts = plan_json(capsys, path, "--vram-gib", "31.3")
    assert code == 0 and facts["fits"] and facts["peak_bytes"] <= 31.3 * GIB
    assert facts["peak_bytes"] == sum(line["bytes"] for line in facts["lines"] if line["at_peak"])
    assert __main__.main(["plan", path]) == 0
    text = capsys.readouterr().out
    assert "Fastest plan that fits" in text and "weights (NF4)" in text and "tokens/s on rtx-5090" in text


def test_the_command_reports_that_nothing_fits(no_hub, capsys):
    path = str(RECIPES / "qwen-5090.yaml")
    code, facts = plan_json(capsys, path, "--vram-gib", "16")
    assert code == 3 and not facts["fits"] and facts["changes_that_fit"]
    assert __main__.main(["plan", path, "--card", "rtx-4090", "--vram-gib", "16"]) == 3
    assert "No plan fits 16.0 GiB" in capsys.readouterr().out
    assert __main__.main(["plan", path, "--card", "abacus"]) == 2
    assert "abacus" in capsys.readouterr().err


def test_codelupe_plan_runs_the_trainers_plan(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(dump_recipe(embedded()))

    def plan(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", PROGRAM, "plan", "--recipe", str(recipe), *arguments],
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", "BATCH_SIZE": "3"},
            cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    done = plan("--vram-gib", "8", "--json")
    facts = json.loads(done.stdout)
    assert done.returncode == 0 and facts["micro_batch_tokens"] == 3 * 512  # BATCH_SIZE over the recipe
    assert plan("--vram-gib", "0.5").returncode == 3
    bad = plan("--card", "abacus")
    assert bad.returncode == 2 and "abacus" in bad.stderr and "Traceback" not in bad.stderr


def test_evaluation_takes_at_most_a_tenth_of_a_run_of_the_default_recipe(no_hub, capsys, tmp_path):
    path, often = str(RECIPES / "qwen-5090.yaml"), tmp_path / "often.yaml"
    often.write_text(dump_recipe(replace(DEFAULT, evaluation=replace(DEFAULT.evaluation, interval_fraction=0.02))))
    share = plan_json(capsys, path)[1]["evaluation_share"]
    assert 0.03 < share <= 0.10
    assert plan_json(capsys, str(often))[1]["evaluation_share"] > share + 0.05
    assert __main__.main(["plan", path]) == 0
    assert "72,000 tokens to stop by and 96,000 to judge by" in capsys.readouterr().out
