"""`benchmarks/gpu` at toy size on a CPU. It runs the same code as on a GPU, each measurement in its own process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu"


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, cwd=ROOT)


def tried(out: Path, parts: str) -> tuple[int, dict[str, dict], str]:
    """Return the exit code, the facts by part, and the page."""
    done = bench(
        "--device", "cpu", "--tiny", "--steps", "1", "--rounds", "1", "--parts", parts, "--out", str(out / "card.md")
    )
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
    assert "--peers: axolotl is not one of trl, trl-chunked, transformers, unsloth" in done.stderr


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
    assert found["unsloth"] == {"part": "unsloth", "failed": "not installed"}
    assert "| share of the matrix rate |" in page and "| unsloth | not installed |" in page
    assert "| at least 60 % of the matrix rate |" in page and "| faster than every peer that runs here (" in page


def test_the_page_says_which_goals_are_reached(tmp_path):
    """The facts include those that only a GPU reports."""
    card = {"name": "Card", "torch": "2", "driver": "1", "capability": "9.0", "shapes": {"a": 1.0}, "tflops": 1.0}
    memory = {"allocated_gib": 20.0, "reserved_gib": 22.0, "outside_gib": 2.0, "planned_peak_gib": 25.0}
    step = {"way": "w", "kernel": "k", "tokens_per_step": 1, "tokens_per_second": 2, "planned_tokens_per_second": 2,
            "share_of_rate": 0.61, "gflop_per_token": 1, "planned_allocated_gib": 21.5, **memory}  # fmt: skip
    peer = {"version": "1", "tokens_per_second": 1, "batch": 1, **memory}
    parts = {"card": card, "full-length": step, "ours": step, "trl": peer}
    world = '{"device": "cuda", "tiny": False, "layers": 48, "ablation_layers": 8, "steps": 1, "vram_gib": 31.3}'
    write = f"""
import sys; sys.path[:0] = ["{SCRIPT}", "{ROOT}"]
from pathlib import Path
from report import write_report
from world import World
found = [dict(facts, part=part) for part, facts in {parts!r}.items()]
write_report(Path(sys.argv[1]), found, World(**{world}), rounds=1)
"""
    subprocess.run([sys.executable, "-c", write, str(tmp_path / "card.md")], check=True, cwd=ROOT)
    page = (tmp_path / "card.md").read_text()
    assert "| 24.00 GiB | yes |" in page
    assert "| the plan within 5 % of the measured peak | +7.5% | **no** |" in page
    assert "| 61.0% | yes |" in page and "(trl is the fastest) | 2.00 times | yes |" in page


@pytest.mark.slow
@pytest.mark.long
def test_each_variant_is_measured_or_says_why_not(tmp_path):
    code, found, _ = tried(tmp_path, "ablation")
    assert code == 0
    assert set(found["ablation"]["not_run"].values()) == {"needs a CUDA device"}
    assert set(found["ablation"]["rows"]) >= {"selective", "full, on the host", "PEFT's layers"}


@pytest.mark.long
def test_a_measurement_that_fails_is_a_line_and_the_exit_code(tmp_path):
    job = {"name": "x", "kind": "step", "world": {"device": "cpu"}}
    done = bench("--job", json.dumps(job))
    assert done.returncode == 0
    assert '"failed": "TypeError: ' in done.stdout
