"""Every recipe trains from files to an adapter: at toy size, on the true architecture of its base.

phased-kat-dev is in test_training.py, llama3-humaneval in test_experiment.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from driver import Codelupe
from safetensors.numpy import load_file

from trainer.recipe_file import load_recipe
from trainer.run_dir import read_json

pytestmark = pytest.mark.timeout(300)

PROJECT = Path(__file__).parents[2]
RUST = """\
//! Payments of the kind {name}.
use std::collections::HashMap;

/// What a {name} request holds.
#[derive(Debug, Clone)]
pub struct {title}Request {{
    pub amount: i64,
    pub currency: String,
    pub retries: u{number},
}}

pub trait {title}Flow {{
    fn authorize(&self, request: &{title}Request) -> Result<u64, String>;
}}

impl {title}Request {{
    pub fn new(amount: i64) -> Self {{
        Self {{ amount, currency: "{currency}".to_string(), retries: {number} }}
    }}

    pub fn total(&self, fees: &HashMap<String, i64>) -> i64 {{
        self.amount * {number} + fees.get("{name}").copied().unwrap_or({number})
    }}
}}

pub fn validate_{name}(request: &{title}Request) -> Result<(), String> {{
    if request.amount <= {number} {{
        return Err(format!("{name}: amount {{}} is too small", request.amount));
    }}
    Ok(())
}}

pub mod {name}_errors {{
    pub const CODE: u32 = {number};
    pub fn describe() -> String {{
        format!("{name} failed with {{}}", CODE)
    }}
}}
"""
NAMES = ("card", "wallet", "transfer", "voucher", "refund", "dispute", "payout", "mandate", "session", "token", "batch",
         "report", "webhook", "routing")  # fmt: skip


def rust_repository(folder: Path) -> None:
    """Write a small Rust repository whose files are alike, but no duplicates."""
    (folder / "src").mkdir(parents=True)
    for number, name in enumerate(NAMES, 3):
        text = RUST.format(name=name, title=name.title(), number=number, currency=("USD", "EUR", "INR")[number % 3])
        own = "\n".join(f"pub const {name.upper()}_{n}: i64 = {n * n + number};" for n in range(number))
        (folder / "src" / f"{name}.rs").write_text(f"{text}\n{own}\n", encoding="utf-8")


def smoke(place: Codelupe, recipe: str, source: str = "repository", **environment: str) -> tuple[Path, dict[str, Any]]:
    """Train a recipe at toy size. Return the folder of its training and the result."""
    done = place.run(
        "train", "--recipe", recipe, "--from", source, "--to", recipe, "--smoke", "--json", timeout=200,
        **environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = json.loads(done.stdout)["phases"]
    return place.home / recipe, found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Codelupe:
    place = Codelupe(tmp_path_factory.mktemp("recipes"))
    rust_repository(place.home / "repository")
    return place


def test_hyperswitch_cpt_learns_files_and_their_items(place: Codelupe) -> None:
    folder, found = smoke(place, "hyperswitch-cpt")
    assert found["decision"] == "promote"
    assert found["evaluation"]["candidate"]["loss"] < found["evaluation"]["anchor"]["loss"]
    assert set(found["evaluation"]["candidate"]) >= {"loss", "perplexity", "token_accuracy"}
    run = folder / "runs" / "000001"
    kinds = read_json(run / "dataset_stats.json")["rows"]["samples"]
    assert set(kinds) == {"file", "function", "struct", "trait", "impl", "module"}
    for kind, counts in kinds.items():  # next-token loss: everything but the first token of a sample
        assert counts["supervised_tokens"] >= 0.9 * counts["tokens"], kind
    frozen = load_recipe(run / "recipe.yaml")
    assert (frozen.training.schedule, frozen.training.packing, frozen.training.weight_decay) == ("cosine", False, 0.1)
    assert read_json(folder / "toy" / "config.json")["model_type"] == "qwen2"
    steps = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert steps[-1] == "step-000006" and list((run / "tensorboard").iterdir())
    merged = place.run("merge", "--recipe", str(run / "recipe.yaml"), "--to", "merged", CODELUPE_HOME=str(folder))
    assert merged.returncode == 0 and (place.home / "merged" / "config.json").is_file(), merged.stderr


def test_mixtral_moe_trains_attention_and_routers_and_counts_experts(place: Codelupe) -> None:
    folder, found = smoke(place, "mixtral-moe")
    assert found["decision"] == "promote"
    run = folder / "runs" / "000001"
    assert read_json(folder / "toy" / "config.json")["model_type"] == "mixtral"
    names = load_file(Path(found["adapter"]) / "adapter_model.safetensors")
    trained = {name.split(".")[-3] if "lora" in name else name.split(".")[-2] for name in names}
    assert trained == {"q_proj", "k_proj", "v_proj", "o_proj", "gate"}
    events = [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert any(event["event"] == "experts" for event in events)
    assert "aux_loss" in next(event for event in events if event["event"] == "step")
    shown = place.run("runs", "1", "--recipe", "mixtral-moe", CODELUPE_HOME=str(folder))
    assert "expert use" in shown.stdout and "entropy" in shown.stdout


@pytest.mark.long
def test_qwen_5090_trains_in_four_bits(place: Codelupe) -> None:
    folder, found = smoke(place, "qwen-5090", str(PROJECT / "service"))  # files of the usual lengths
    assert found["decision"] == "promote"
    frozen = load_recipe(folder / "runs" / "000001" / "recipe.yaml")
    assert (frozen.base.quantization, frozen.training.optimizer) == ("nf4", "adamw_8bit")
    assert set(read_json(folder / "runs" / "000001" / "dataset_stats.json")["rows"]["samples"]) == {"instruction"}
