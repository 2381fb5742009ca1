"""`benchmarks/gpu` at toy size on a CPU: the same code as on a card, in processes of their own."""

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
    """Exit code, facts by part, and the page."""
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_each_variant_is_measured_or_says_why_not(tmp_path):
    code, found, _ = tried(tmp_path, "ablation")
    assert code == 0
    assert set(found["ablation"]["not_run"].values()) == {"needs a CUDA device"}
    assert set(found["ablation"]["rows"]) >= {"selective", "full, on the host", "PEFT's layers"}


def test_a_measurement_that_fails_is_a_line_and_the_exit_code(tmp_path):
    job = {"name": "x", "kind": "step", "world": {"device": "cpu"}}
    done = bench("--job", json.dumps(job))
    assert done.returncode == 0
    assert '"failed": "TypeError: ' in done.stdout
