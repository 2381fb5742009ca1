"""`codelupe evaluate` on a home with a published adapter, as a user runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from driver import COMMAND, Codelupe

pytestmark = pytest.mark.timeout(300)

TASK = {
    "prompt": 'def double(x):\n    """Double."""\n', "entry_point": "double",
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n",
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Codelupe]:
    """Yield a home with one published adapter, and a benchmark of 20 tasks."""
    service = Codelupe(tmp_path_factory.mktemp("evaluate"), MAX_DATASET_SIZE="16", SAMPLE_PREDICTIONS="0")
    done = service.run("up", "--once", timeout=200)
    assert done.returncode == 0, done.stderr
    tasks = [{**TASK, "task_id": f"Own/{number}"} for number in range(20)]
    (service.home / "own.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks))
    service.environment["BENCHMARK_FILES"] = str(service.home / "own.jsonl")
    yield service
    service.stop()


def test_the_published_adapter_beats_the_base_on_held_out_files(home: Codelupe):
    done = home.run("evaluate", "--suite", "held-out", "--json", timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["adapter"] == "v000001" and found["folder"].endswith("evaluations/held-out-v000001")
    whole = found["slices"]["all"][0]
    assert whole["models"]["candidate"] == whole["models"]["current"]
    assert whole["differences"]["anchor"]["high"] < 0, "the gate promoted it"
    assert found["bootstrap"]["anchor"]["difference"] == pytest.approx(whole["differences"]["anchor"]["difference"])


def test_an_interrupted_evaluation_goes_on(home: Codelupe):
    arguments = ["evaluate", "--suite", "humaneval", "--adapter", "base", "--max-tokens", "99", "--batch-size", "1"]
    folder = home.home / "evaluations" / "humaneval-base"
    process = subprocess.Popen(
        [*COMMAND, *arguments], env=home.environment, cwd=home.home, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not lines(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 75 and "The same command goes on from here" in errors, errors
    before = lines(folder)
    assert 0 < len(before) < 20 and not (folder / "evaluation.json").exists()
    shown = home.run(*arguments, "--batch-size", "20", timeout=250)
    assert shown.returncode == 0, shown.stderr
    assert "20 answers to 20 tasks generated. Nothing was executed" in shown.stdout
    assert lines(folder)[: len(before)] == before and len(lines(folder)) == 20


def test_what_cannot_be_evaluated_is_said_in_one_line(home: Codelupe):
    for arguments, code, said in [
        (["--suite", "mbpp"], 2, "BENCHMARK_FILES"),
        (["--suite", "humaneval", "--adapter", "7"], 2, "no adapter 7"),
        (["--suite", "humaneval", "--adapter", "previous"], 3, "--adapter base"),
        (["--suite", "humaneval", "--adapter", "base", "--max-tokens", "9"], 2, "max_tokens 99, now 9"),
    ]:
        done = home.run("evaluate", *arguments, timeout=100)
        assert done.returncode == code and said in done.stderr, done.stderr
        assert "Traceback" not in done.stderr


def lines(folder: Path) -> list[str]:
    path = folder / "generations.jsonl"
    return path.read_text().splitlines() if path.exists() else []
