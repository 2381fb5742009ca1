"""`benchmarks/gpu` at toy size on a CPU. It runs the same code as on a GPU, each measurement in its own process."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu"


BLOCKED = ("tree_sitter", "psycopg2", "psycopg", "flask", "wandb")
"""Packages that the machine with the card does not have."""


@pytest.fixture(scope="module", autouse=True)
def _blocked(tmp_path_factory):
    """Every process that a test starts is without them."""
    folder = tmp_path_factory.mktemp("blocked")
    (folder / "sitecustomize.py").write_text(f"import sys; sys.modules.update(dict.fromkeys({BLOCKED!r}))")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        yield


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, cwd=ROOT)


def tried(out: Path, parts: str, *more: str) -> tuple[int, dict[str, dict], str]:
    """Return the exit code, the facts by part, and the page."""
    done = bench(
        "--device", "cpu", "--tiny", "--steps", "1", "--rounds", "1", "--parts", parts, "--out", str(out / "card.md"),
        *more,
    )  # fmt: skip
    found = [json.loads(line) for line in (out / "card.jsonl").read_text().splitlines()]
    return done.returncode, {facts["part"]: facts for facts in found}, (out / "card.md").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card: it would be measured")
def test_without_a_card_it_says_why_it_skips():
    done = bench()
    assert done.returncode == 0
    assert done.stdout.startswith("skipped: torch sees no CUDA device")


def test_an_unknown_peer_is_an_error():
    done = bench("--peers", "trl,axolotl")
    assert done.returncode == 2
    assert "--peers: axolotl is not one of trl-liger, trl, transformers, unsloth" in done.stderr


def test_it_needs_none_of_the_projects_other_packages():
    modules = "import ablation, correctness, costs, jobs, ours, peers, report, results, world"
    code = f"import sys; sys.path[:0] = ['{SCRIPT}', '{ROOT}']; assert sys.modules['flask'] is None; {modules}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


WORLD = {"device": "cpu", "tiny": True, "layers": 1, "ablation_layers": 1, "steps": 1, "vram_gib": 31.3}


def test_our_step_is_measured_and_then_its_parts():
    job = {"name": "step", "kind": "step", "full": True, "at_once": True, "costs": True, "world": WORLD}
    done = bench("--job", json.dumps(job))
    first, second = [json.loads(line[1:]) for line in done.stdout.split("\n") if line[:1] == "\x1e"]
    assert first["tokens_per_step"] == 2 * 128 and "costs" not in first
    costs = second["costs"]
    assert {part for part, seconds in costs["seconds"].items() if seconds} >= {
        "dequantize", "base products", "adapter products", "attention", "loss", "optimizer"
    }  # fmt: skip
    # One layer, 128 wide, MLP 256, keys and values 64, rank 8. The first q, k and v need no gradient of their input.
    first_three = 128 * 128 + 2 * 128 * 64
    matrices = first_three + 128 * 128 + 3 * 128 * 256
    assert costs["flops"]["base products"] == 2 * 256 * (2 * matrices - first_three)
    sides = 2 * (128 + 128) + 2 * (128 + 64) + 3 * (128 + 256)
    assert costs["flops"]["adapter products"] == 2 * 256 * 8 * (3 * sides - 3 * 128)


@pytest.fixture
def results(monkeypatch):
    """The module `results` of the benchmark."""
    monkeypatch.syspath_prepend(str(SCRIPT))
    yield importlib.import_module("results")
    for name in ("results", "report", "jobs"):
        sys.modules.pop(name, None)


def call(**changes) -> dict:
    card = {"part": "card", "call": "1", "name": "Card", "torch": "2", "driver": "1", "capability": "9.0",
            "shapes": {"a": 1.0}, "tflops": 1.0, "tiny": False, "layers": 48, "vram_gib": 31.3,
            "steps": 1, "rounds": 1}  # fmt: skip
    return {**card, **changes}


STEP = {"call": "1", "way": "w", "kernel": "k", "tokens_per_step": 1, "tokens_per_second": 2, "rank": 256,
        "planned_tokens_per_second": 2, "share_of_rate": 0.61, "gflop_per_token": 1, "planned_allocated_gib": 21.5,
        "allocated_gib": 20.0, "reserved_gib": 22.0, "outside_gib": 2.0, "planned_peak_gib": 25.0,
        "planned_cuda_gib": 0.6, "micro_batch": "4 × 4,096", "losses": [11.9]}  # fmt: skip
PEER = {"call": "1", "version": "1", "tokens_per_second": 1, "batch": 1, "allocated_gib": 1.0, "losses": [11.95]}


def page_of(results, tmp_path, *facts: dict) -> str:
    found = results.Results(tmp_path / "card.md")
    found.add_call(call())
    for part in facts:
        found.add(part)
    found.write()
    return (tmp_path / "card.md").read_text()


def test_the_page_says_which_goals_are_reached(results, tmp_path):
    """The facts include those that only a GPU reports."""
    costs = {"seconds": {"base products": 0.3, "loss": 0.1}, "flops": {"base products": 3e8}, "step_seconds": 0.5}
    page = page_of(
        results, tmp_path, {**STEP, "part": "full-length"}, {**STEP, "part": "ours", "costs": costs},
        {**PEER, "part": "trl"},
    )  # fmt: skip
    assert "| 24.00 GiB | yes |" in page
    assert "| the plan within 5 % of the measured peak | +7.5% | **no** |" in page
    assert "| 61.0% | yes |" in page and "(trl is the fastest) | 2.00 times | yes |" in page
    assert "| ours against trl 1 | 2.00 times as fast |" in page
    assert "| the peers' loss of the first step, within 0.01 nats | 0.0500 | **no** |" in page
    assert "| where the step's time goes | base products 75%, loss 25% |" in page
    # the rate that 61 % of refer to: 2 tokens/s × 1 GFLOP / 0.61 = 3.28 GFLOP/s; 0.3 GFLOP in 0.3 s are 30.5 % of it
    assert "| base products | 300.0 | 75.0% | 30.5% |" in page and "| no part at work | 100.0 | | |" in page


def test_a_part_that_fails_or_is_cut_off_keeps_the_others(results, tmp_path):
    rows = {"case": {"whole": 1e-6, "worst": 1e-6, "worst_of": "m", "most": 1e-5, "passed": True}}
    page = page_of(
        results, tmp_path, {**STEP, "part": "ours"},
        {"part": "correctness", "call": "1", "rows": rows, "passed": True, "incomplete": "stopped"},
        {"part": "full-length", "call": "1", "failed": "out of memory"},
    )  # fmt: skip
    assert "| tokens/s | 2 | 2 |" in page
    assert "| case | 1.00e-06 |" in page and "Incomplete: stopped." in page
    assert "Our step, every sample at full length: out of memory." in page


def test_without_time_nothing_starts_and_earlier_results_stay(results, tmp_path):
    (answer,) = importlib.import_module("jobs").Jobs(minutes=0).run("our step", kind="step")
    assert answer == {"not_run": "0 s of 0 minutes were left, and it takes about 10 s"}
    late = {"call": "1", **answer}
    page = page_of(results, tmp_path, {**STEP, "part": "ours"}, {**late, "part": "ours"}, {**late, "part": "ablation"})
    assert "| tokens/s | 2 | 2 |" in page
    assert "One thing changed at a time: not run: 0 s of 0 minutes were left" in page


def test_a_measurement_is_stopped_when_the_time_is_over(results, monkeypatch, tmp_path):
    """It keeps the answers that it gave before."""
    jobs = importlib.import_module("jobs")
    script = tmp_path / "slow.py"
    script.write_text("import time\nprint('\\x1e{\"rows\": 1}', flush=True)\ntime.sleep(60)\n")
    monkeypatch.setattr(jobs, "HERE", script)
    monkeypatch.setattr(jobs, "LEAST_SECONDS", 0)
    answers = list(jobs.Jobs(minutes=0.03).run("slow", kind="ablation"))
    assert answers[0] == {"rows": 1}
    assert answers[-1]["rows"] == 1 and answers[-1]["incomplete"].startswith("stopped when the 0.03 minutes")


def test_results_of_several_calls_are_joined_if_they_belong_together(results, tmp_path):
    page_of(results, tmp_path / "one", {**STEP, "part": "ours"})
    second = [call(call="2"), {"part": "correctness", "call": "2", "failed": "x"}, {**PEER, "call": "2", "part": "trl"}]
    (tmp_path / "two.jsonl").write_text("".join(json.dumps(facts) + "\n" for facts in second))
    done = bench(
        "--join", str(tmp_path / "one" / "card.jsonl"), str(tmp_path / "two.jsonl"), "--out", str(tmp_path / "both.md")
    )
    assert done.returncode == 0, done.stderr
    assert "| ours against trl 1 | 2.00 times as fast |" in (tmp_path / "both.md").read_text()
    (tmp_path / "two.jsonl").write_text(json.dumps(call(call="2", torch="3")) + "\n")
    done = bench(
        "--join", str(tmp_path / "one" / "card.jsonl"), str(tmp_path / "two.jsonl"), "--out", str(tmp_path / "both.md")
    )
    assert done.returncode == 2
    assert "has results with torch 2, and" in done.stderr and "has 3." in done.stderr


@pytest.mark.slow
@pytest.mark.long
def test_step_correctness_and_peers_are_measured(tmp_path):
    code, found, page = tried(tmp_path, "correctness,step,full-length,peers")
    assert code == 0
    assert found["card"]["tflops"] > 0
    assert all(row["passed"] for row in found["correctness"]["rows"].values())
    assert found["full-length"]["tokens_per_step"] == 4 * 128
    assert 0 < found["ours"]["share_of_rate"] < 1
    assert found["transformers"]["tokens_per_step"] == found["ours"]["tokens_per_step"]
    assert found["unsloth"]["not_run"] == "unsloth not installed"
    assert "| share of the matrix rate |" in page and "| unsloth | not run: unsloth not installed |" in page
    assert "| at least 60 % of the matrix rate |" in page and "| faster than every peer that runs here (" in page


@pytest.mark.slow
@pytest.mark.long
def test_each_variant_is_measured_or_says_why_not(tmp_path):
    code, found, _ = tried(tmp_path, "ablation")
    assert code == 0
    assert set(found["ablation"]["left_out"].values()) == {"needs a CUDA device"}
    assert set(found["ablation"]["rows"]) >= {"selective", "full, on the host", "PEFT's layers"}


@pytest.mark.long
def test_a_measurement_that_fails_is_a_line_and_the_exit_code(tmp_path):
    job = {"name": "x", "kind": "step", "world": {"device": "cpu"}}
    done = bench("--job", json.dumps(job))
    assert done.returncode == 0
    assert '"failed": "TypeError: ' in done.stdout
