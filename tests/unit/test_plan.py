"""The choice among plans: the arithmetic for the 14B, what fits, and the message when nothing fits."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from planning import make_small, recipe_for
from run_folder import RECIPES, embedded
from transformers import AutoModelForCausalLM, Phi3Config

from trainer import __main__
from trainer.errors import UnusableInput
from trainer.model.shapes import OTHER_NAMES, OTHER_SHAPES, QWEN_SHAPES, architecture, known_architecture, known_shape
from trainer.plan.cards import CARDS, DEFAULT_CARD, GIB, card_named
from trainer.plan.choose import changes_that_fit, fastest_fitting, possible_plans, smallest_plan, with_choice
from trainer.plan.device import fitted
from trainer.plan.exchange import BUCKET_ELEMENTS, Exchange, Network, exchange
from trainer.plan.memory import Choice, layer_bytes
from trainer.plan.model import NotPlanned, read_model
from trainer.plan.show import bar, table
from trainer.plan.speed import flops_per_token
from trainer.plan.static import Line, sizes_of
from trainer.recipe import Distributed
from trainer.recipe_file import dump_recipe, load_recipe

PROGRAM = "from service.cli.main import main; main()"
ROOT = Path(__file__).parents[2]
DEFAULT = load_recipe(RECIPES / "qwen-5090.yaml")
CARD = CARDS["rtx-5090"]
CARD_BYTES = int(CARD.vram_gib * GIB)
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
    assert known_shape("Qwen/Qwen2.5-Coder-14B-Instruct") == known_shape("Qwen/Qwen2.5-14B") == "14B"
    for other in ("Qwen/Qwen2.5-72B", "Qwen/Qwen3-14B", "me/Qwen2.5-14B", "Qwen/Qwen2.5-Coder-14B-Instruct-AWQ"):
        assert known_shape(other) is None


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


def test_layers_of_another_kind_are_not_planned():
    config = Phi3Config(
        hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=128, pad_token_id=0,
    )  # fmt: skip
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    with pytest.raises(NotPlanned, match=r"training\.checkpointing"):
        read_model(skeleton, replace(DEFAULT.lora, targets=("qkv_proj",)))


# --- other architectures --------------------------------------------------------------------------------------


OF_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
COUNTS = {
    "Meta-Llama-3-8B": 8_030_261_248, "KAT-Dev": 32_762_123_264, "Mixtral-8x7B": 46_702_792_704,
    "Mixtral-8x22B": 140_620_634_112, "Mixtral-8x22B-Instruct": 140_630_071_296,
}  # fmt: skip
"""Parameter counts from the Hub."""


@pytest.mark.parametrize("shape", OTHER_SHAPES)
def test_other_known_shapes_have_the_published_count(shape):
    skeleton = known_architecture(shape)
    assert sum(p.numel() for p in skeleton.parameters()) == COUNTS[shape]
    assert read_model(skeleton, replace(DEFAULT.lora, targets=OF_ATTENTION)).parameters == COUNTS[shape]


def test_hub_names_of_other_shapes():
    assert set(OTHER_NAMES.values()) == set(OTHER_SHAPES)
    assert known_shape("mistralai/Mixtral-8x7B-Instruct-v0.1") == "Mixtral-8x7B"
    assert known_shape("me/KAT-Dev") is None


def test_a_token_of_a_mixture_costs_two_of_eight_experts():
    lora = replace(DEFAULT.lora, rank=16, targets=OF_ATTENTION)
    mixtral = read_model(known_architecture("Mixtral-8x7B"), lora)
    active = sum(matrix.active for matrix in mixtral.matrices) + mixtral.routers + mixtral.embeddings + mixtral.head
    assert active == pytest.approx(12.88e9, rel=0.001)  # "12.9B active" in its paper
    recipe = replace(DEFAULT, lora=lora, base=replace(DEFAULT.base, model="mistralai/Mixtral-8x7B-v0.1"))
    choice = Choice(micro_batch_tokens=4096, checkpointing="none", offload=False)
    flops = flops_per_token(mixtral, recipe, choice)
    assert 4 * active < flops < 4.4 * active  # attention's own products come on top
    gib = {line.name: line.bytes / GIB for line in possible_plans(mixtral, recipe, CARD)[0].lines}
    assert gib["weights (NF4)"] == pytest.approx(21.6, abs=0.1)
    whole = replace(recipe, base=replace(recipe.base, quantization="none"))
    gib = {line.name: line.bytes / GIB for line in possible_plans(mixtral, whole, CARD)[0].lines}
    assert gib["weights"] == pytest.approx(86.5, abs=0.1)


# --- several cards --------------------------------------------------------------------------------------------


def lines_of(model, recipe, strategy: str, processes: int) -> dict[str, int]:
    several = replace(recipe, distributed=Distributed(processes=processes, strategy=strategy))
    return {line.name: line.bytes for line in possible_plans(model, several, CARD)[0].lines}


def test_what_each_strategy_divides(big):
    alone, ddp, zero2, zero3 = (
        lines_of(big, DEFAULT, *how) for how in [("zero3", 1), ("ddp", 4), ("zero2", 4), ("zero3", 4)]
    )
    divided = ("gradients (float32)", "optimizer (adamw_8bit)")
    weights = ("weights (NF4)", "embeddings", "output head", "adapter (float32)",
               "norms, biases, positions")  # fmt: skip
    assert alone["gradients (float32)"] > 4 * BUCKET_ELEMENTS
    assert ddp == alone | {"gradients of one piece": 4 * BUCKET_ELEMENTS}
    assert zero2 == alone | {name: -(-alone[name] // 4) for name in divided}
    assert {name: zero3[name] for name in (*divided, *weights)} == {
        name: -(-alone[name] // 4) for name in (*divided, *weights)
    }
    assert zero3["quantization constants"] == alone["quantization constants"]
    layer = sum(alone[name] for name in ("weights (NF4)", "adapter (float32)")) // 48
    assert layer < alone["embeddings"] == zero3["gathered layer"]


@pytest.mark.parametrize(
    ("strategy", "hidden", "open_", "of_step"),
    [  # gradients: 8 GB, 2e9 numbers; adapter: 8 GB; weights: 16 GB. A link of 10 GB/s gives 7
        ("ddp", 0, 0, 2 * 8 * 3 / 4 / 7),
        ("zero2", 0, 0, (2 * 8 + 8) * 3 / 4 / 7),
        ("zero3", 2 * 24 * 3 / 4 / 7, 8 * 3 / 4 / 7, 0),
        ("fsdp2", 2 * 24 * 3 / 4 / 7, 8 * 3 / 4 / 7, 0),
    ],
)
def test_the_seconds_of_exchange(strategy, hidden, open_, of_step):
    lines = [
        Line(name=name, bytes=int(size * 1e9), kind="static")
        for name, size in {"weights": 16, "adapter (float32)": 8, "gradients (float32)": 8, "optimizer": 4}.items()
    ]
    card = replace(CARD, link_gbs=10)
    found = exchange(strategy, lines, 2_000_000_000, card, 4, Network())
    assert (found.hidden, found.open, found.of_step) == pytest.approx((hidden, open_, of_step))
    assert exchange(strategy, lines, 2_000_000_000, card, 1, Network()) == Exchange()
    assert Network(gbits=80).bytes_per_second(card, 8) == pytest.approx(7e9)
    assert Network(gbits=40).bytes_per_second(card, 9) == pytest.approx(3.5e9)


def test_exchange_makes_a_step_longer(big):
    def fastest(strategy: str, gbits: float = 100.0):
        several = replace(DEFAULT, distributed=Distributed(processes=16, strategy=strategy))
        return possible_plans(big, several, CARD, Network(gbits=gbits))[0]

    ddp, slow = fastest("ddp"), fastest("ddp", gbits=1)
    assert slow.step_seconds - ddp.step_seconds == pytest.approx(slow.exchange.of_step - ddp.exchange.of_step)
    behind, waiting = fastest("fsdp2", gbits=1e6), fastest("fsdp2", gbits=0.1)
    assert behind.step_seconds < 1.2 * ddp.step_seconds
    each = waiting.exchange.hidden + waiting.exchange.open
    assert waiting.step_seconds == pytest.approx(waiting.accumulation * each)  # the work is hidden behind the exchange


def test_auto_takes_the_fastest_strategy_that_fits(big):
    several = replace(DEFAULT, distributed=Distributed(processes=8))
    plans = possible_plans(big, several, CARD)
    assert {plan.strategy for plan in plans} == {"ddp", "fsdp2"}
    assert fastest_fitting(plans, 300 * GIB).strategy == "ddp"
    divided = fastest_fitting(plans, CARD_BYTES)
    whole = fastest_fitting([plan for plan in plans if plan.strategy == "ddp"], CARD_BYTES)
    assert divided.strategy == "fsdp2" and divided.tokens_per_second > whole.tokens_per_second  # it recomputes less
    least = {name: min(plan.peak_bytes for plan in plans if plan.strategy == name) for name in ("ddp", "fsdp2")}
    assert fastest_fitting(plans, least["ddp"] - 1).strategy == "fsdp2"
    assert {plan.strategy for plan in possible_plans(big, DEFAULT, CARD)} == {"ddp"}


def test_cards_that_share_packs_divide_their_activations(big):
    def plans(sequence: int):
        several = replace(DEFAULT, distributed=Distributed(processes=4, strategy="ddp", sequence=sequence))
        return {plan.choice: plan for plan in possible_plans(big, several, CARD)}

    alone, shared = plans(1), plans(4)
    assert alone.keys() == shared.keys()
    for choice, whole in alone.items():
        part = shared[choice]
        sizes = [{line.name: line.bytes for line in plan.lines} for plan in (whole, part)]
        assert sizes[1]["positions"] * 4 == sizes[0]["positions"]
        if choice.checkpointing == "full":
            assert sizes[1]["checkpoints"] * 4 == sizes[0]["checkpoints"]
            assert part.host_bytes * 4 == whole.host_bytes
        times = 3 if choice.checkpointing == "full" else 2
        sent = (
            choice.micro_batch_tokens // 4 * 2 * 128 * 2 * (40 + 8) * 48 * times * 3 // 4
        )  # of 40 heads and 8 key heads
        seconds = sent / Network().bytes_per_second(CARD, 4)
        assert part.exchange.open == pytest.approx(seconds) and whole.exchange.open == 0
        work = part.step_seconds - part.exchange.of_step - part.accumulation * part.exchange.open
        assert work == pytest.approx(
            (whole.step_seconds - whole.exchange.of_step) / 4, rel=0.2
        )  # unpacking is not divided


def test_where_nothing_fits_the_plan_names_the_cards_that_may_share_packs(big):
    long = replace(DEFAULT, data=replace(DEFAULT.data, max_length=131_072))
    several = replace(long, distributed=Distributed(processes=8, strategy="fsdp2"))
    assert fastest_fitting(possible_plans(big, several, CARD), CARD_BYTES) is None
    (change,) = [text for text in changes_that_fit(big, several, CARD, CARD_BYTES) if "sequence" in text]
    number = int(change.removeprefix("distributed.sequence: "))
    shared = replace(several, distributed=replace(several.distributed, sequence=number))
    assert fastest_fitting(possible_plans(big, shared, CARD), CARD_BYTES) is not None
    alone = replace(long, distributed=Distributed())
    assert not any("sequence" in text for text in changes_that_fit(big, alone, CARD, CARD_BYTES))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--sequence", "2"), "--sequence: 2 must divide the number of cards, 1. Set --gpus, too"),
        (("--gpus", "6", "--sequence", "4"), "--sequence: 4 must divide the number of cards, 6"),
        (("--gpus", "3", "--sequence", "3"), "3 does not divide the 40 attention heads"),
    ],
)
def test_the_command_refuses_cards_that_cannot_share_packs(no_hub, capsys, arguments, message):
    assert __main__.main(["plan", str(RECIPES / "qwen-5090.yaml"), *arguments]) == 2
    assert message in capsys.readouterr().err


# --- what `auto` becomes --------------------------------------------------------------------------------------


def test_on_a_cpu_auto_is_none():
    recipe, plan = fitted(embedded(), torch.device("cpu"))
    assert plan is None
    assert (recipe.training.checkpointing, recipe.training.offload_checkpoints) == ("none", "never")
    named, plan = fitted(embedded(training__checkpointing="full"), torch.device("cpu"))
    assert plan is None
    assert (named.training.checkpointing, named.training.offload_checkpoints) == ("full", "never")


@pytest.mark.parametrize(("free_gib", "policy"), [(139, "none"), (0.9, "selective"), (0.65, "full"), (0.01, "full")])
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


def test_on_a_gpu_auto_also_knows_mixtures_and_does_not_count_on_sharding(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    model = str(make_small(tmp_path, "mixtral"))
    recipe = recipe_for(model, lora__targets=list(OF_ATTENTION), base__compute_dtype="bfloat16")
    sharded = replace(recipe, distributed=Distributed(processes=4, strategy="zero3"))
    found = []
    for free, wanted in ((139, recipe), (139, sharded), (0.01, sharded)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (int(free * GIB), 140 * GIB))
        fixed, plan = fitted(wanted, torch.device("cuda"))
        assert plan is not None and fixed.distributed == wanted.distributed
        found.append((fixed.training.checkpointing, plan.allocated_bytes))
    assert found[0] == found[1] and found[0][0] == "none" and found[2][0] == "full"


def test_named_values_need_no_plan(no_hub):
    named = with_training(DEFAULT, checkpointing="full", offload_checkpoints="never")
    assert fitted(named, torch.device("cuda")) == (named, None)


# --- the command ----------------------------------------------------------------------------------------------


def plan_json(capsys, *arguments: str) -> tuple[int, dict]:
    code = __main__.main(["plan", *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gpus", "1", "--strategy", "zero3"], "--strategy: one card shares nothing, so zero3 needs --gpus"),
        (["--gpus", "0"], "--gpus: 0 must be from 1 to 4,096"),
        (["--gpus", "9", "--network-gbits", "inf"], "--network-gbits: inf must be a number above 0, and finite"),
    ],
)
def test_wrong_cards_and_networks_are_refused(capsys, arguments, said):
    assert __main__.main(["plan", str(RECIPES / "embedded.yaml"), *arguments]) == 2
    assert said in capsys.readouterr().err


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


def test_the_command_says_steps_hours_and_share_for_the_recipes_corpus(no_hub, capsys):
    """The description of this system has 2,355 steps and about 4 hours on two H200."""
    path = str(RECIPES / "hyperswitch-cpt.yaml")
    code, facts = plan_json(capsys, path, "--card", "h200")
    assert code == 0 and facts["strategy"] == "zero2" and facts["processes"] == 2
    corpus = facts["corpus"]
    assert (corpus["trained_samples"], corpus["steps_per_epoch"], corpus["steps"]) == (15_058, 471, 2355)
    assert corpus["hours"] == pytest.approx(corpus["tokens"] / (2 * facts["tokens_per_second"]) / 3600, rel=0.2)
    assert facts["trained_parameters"] == 536_870_912
    assert facts["trained_share"] == pytest.approx(536_870_912 / (PARAMETERS["32B"] + 536_870_912), abs=1e-6)
    _, doubled = plan_json(capsys, path, "--card", "h200", "--samples", "33462", "--tokens-per-sample", "1200")
    assert doubled["corpus"]["steps"] == 942 * 5  # 30,116 samples
    assert doubled["corpus"]["tokens"] == 30_116 * 1200 * 5
    assert __main__.main(["plan", path, "--card", "h200"]) == 0
    text = capsys.readouterr().out
    assert "2,355 steps (471 per epoch) for 15,058 of 16,731 samples" in text and "1.61% of all" in text
    assert "hours on 2 cards" in text


def test_the_most_steps_bound_the_plan_and_a_flag_needs_samples(no_hub, capsys, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(dump_recipe(embedded(training__max_steps=7, training__num_epochs=3)))
    corpus = plan_json(capsys, str(path), "--samples", "1000", "--tokens-per-sample", "200")[1]["corpus"]
    assert (corpus["steps_per_epoch"], corpus["steps"]) == (119, 7)  # 950 samples of eight a step
    assert corpus["tokens"] == round(950 * 200 * 3 * 7 / 357)
    assert plan_json(capsys, str(path), "--samples", "1000")[1]["corpus"]["hours"] is None
    assert __main__.main(["plan", str(path), "--tokens-per-sample", "200"]) == 2
    assert "needs --samples" in capsys.readouterr().err
    assert __main__.main(["plan", str(path), "--samples", "0", "--tokens-per-sample", "200"]) == 2
    assert "--samples: 0 must be at least 1" in capsys.readouterr().err


def test_codelupe_plan_runs_the_trainers_plan(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(dump_recipe(embedded()))

    def plan(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", PROGRAM, "plan", "--recipe", str(recipe), *arguments],
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", "BATCH_SIZE": "3"},
            cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    done = plan(
        "--vram-gib", "8", "--gpus", "15", "--strategy", "zero3", "--sequence", "3", "--network-gbits", "1", "--json"
    )
    facts = json.loads(done.stdout)
    assert done.returncode == 0 and facts["micro_batch_tokens"] == 3 * 512  # BATCH_SIZE over the recipe
    assert (facts["processes"], facts["strategy"], facts["sequence"]) == (15, "zero3", 3)
    assert facts["step_seconds"] >= facts["accumulation"] * facts["exchange_seconds"]["hidden"] > 0.001
    assert plan("--vram-gib", "0.5", "--samples", "80", "--tokens-per-sample", "99.5").returncode == 3


def test_evaluation_takes_at_most_a_tenth_of_a_run_of_the_default_recipe(no_hub, capsys, tmp_path):
    path, often = str(RECIPES / "qwen-5090.yaml"), tmp_path / "often.yaml"
    often.write_text(dump_recipe(replace(DEFAULT, evaluation=replace(DEFAULT.evaluation, interval_fraction=0.02))))
    share = plan_json(capsys, path)[1]["evaluation_share"]
    assert 0.03 < share <= 0.10
    assert plan_json(capsys, str(often))[1]["evaluation_share"] > share + 0.05
    assert __main__.main(["plan", path]) == 0
    assert "72,000 tokens to stop by and 96,000 to judge by" in capsys.readouterr().out


def test_a_curriculum_takes_the_steps_of_all_its_phases(no_hub, capsys, tmp_path):
    path = str(RECIPES / "phased-kat-dev.yaml")
    corpus = plan_json(capsys, path, "--samples", "9600", "--tokens-per-sample", "5000")[1]["corpus"]
    assert (corpus["phases"], corpus["trained_samples"], corpus["steps_per_epoch"]) == (3, 9120, 190)
    assert (corpus["steps"], corpus["tokens"]) == (190 * 7, 9120 * 5000 * 7)
    short = tmp_path / "short.yaml"
    recipe = load_recipe(RECIPES / "phased-kat-dev.yaml")
    short.write_text(dump_recipe(replace(recipe, training=replace(recipe.training, max_steps=400))))
    assert plan_json(capsys, str(short), "--samples", "9600")[1]["corpus"]["steps"] == 400 + 380 + 380
