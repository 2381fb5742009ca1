"""`codelupe evaluate`, `compare`, `merge` and `export` on a home with a published adapter, as a user runs them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from driver import COMMAND, Codelupe, quick_recipe
from huggingface_hub import ModelCard
from webhook import PASSWORD, SECRET, Webhook, webhook

pytestmark = pytest.mark.timeout(300)

TASK = {
    "prompt": 'def double(x):\n    """Double."""\n', "entry_point": "double",
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n",
}  # fmt: skip


@pytest.fixture(scope="module")
def alerts() -> Iterator[Webhook]:
    with webhook() as hook:
        yield hook


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, alerts: Webhook) -> Iterator[Codelupe]:
    """Yield a home with one published adapter, and a benchmark of 20 tasks."""
    service = Codelupe(
        tmp_path_factory.mktemp("evaluate"), MAX_DATASET_SIZE="16", SAMPLE_PREDICTIONS="0", ALERT_URLS=alerts.url
    )
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


@pytest.mark.long
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


@pytest.mark.long
def test_what_cannot_be_evaluated_is_said_in_one_line(home: Codelupe):
    short = ["--suite", "humaneval", "--adapter", "base", "--max-samples", "1", "--to", "short"]
    assert home.run("evaluate", *short, "--max-tokens", "8", timeout=100).returncode == 0
    for arguments, code, said in [
        (["--suite", "mbpp"], 2, "BENCHMARK_FILES"),
        (["--suite", "humaneval", "--adapter", "7"], 2, "no adapter 7"),
        (["--suite", "humaneval", "--adapter", "previous"], 3, "`base` stands for"),
        ([*short, "--max-tokens", "9"], 2, "max_tokens 8, now 9"),
    ]:
        done = home.run("evaluate", *arguments, timeout=100)
        assert done.returncode == code and said in done.stderr, done.stderr
        assert "Traceback" not in done.stderr


def test_the_published_adapter_has_a_card(home: Codelupe):
    card = ModelCard.load(home.home / "models" / "adapters" / "v000001" / "README.md")
    assert card.data.library_name == "peft" and "python" in card.data.tags
    assert "Decision: promote." in card.text and "| python | unknown |" in card.text
    assert home.run("audit", timeout=100).returncode == 0, "it checks the adapter against its manifest"


def test_base_and_adapter_are_compared(home: Codelupe):
    arguments = ["compare", "--prompt", "import os", "--style", "completion", "--max-tokens", "8", "--json"]
    done = home.run(*arguments, timeout=200)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [one["name"] for one in found["models"]] == ["base", "v000001"], "there is no version before it"
    assert [one["tokens"] for one in found["prompts"][0]["answers"]] == [8, 8]
    done = home.run("compare", "--top-p", "0")
    assert done.returncode == 2 and "--top-p 0 is not allowed" in done.stderr


@pytest.mark.long
def test_the_adapter_is_merged(home: Codelupe):
    done = home.run("merge", "--to", "merged", "--dtype", "float16", "--json", timeout=200)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["adapter"] == "v000001" and found["logits"]["difference"] < found["logits"]["from_base"]
    card = ModelCard.load(home.home / "merged" / "README.md")
    assert card.data.library_name == "transformers" and "| python | unknown |" in card.text
    for arguments, code, said in [
        (["merge", "--to", "merged"], 2, "exists already"),
        (["merge", "base", "--to", "other"], 2, "has no adapter"),
        (["merge", "--to", "other", "--dtype", "nf4"], 2, "16 bits only"),
        (["export", "--to", "other", "--format", "zip"], 2, "hf, adapter, gguf"),
        (["export", "--to", "other", "--push", "me/x"], 3, "HF_TOKEN"),
        (["export", "--to", "other", "--format", "gguf"], 3, "llama.cpp"),
    ]:
        done = home.run(*arguments, timeout=100)
        assert done.returncode == code and said in done.stderr, done.stderr
        assert "Traceback" not in done.stderr and not (home.home / "other").exists()


def lines(folder: Path) -> list[str]:
    path = folder / "generations.jsonl"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.long
def test_the_verdicts_of_up_once_arrive_as_alerts_and_its_log_has_no_secret(home: Codelupe, alerts: Webhook):
    """The last test of the file: a second run, which no candidate can pass, is refused."""
    recipe = quick_recipe(home.home / "strict.yaml", gate={"evidence": "point", "largest_norm": 0.000001})
    done = home.run("up", "--once", timeout=200, CODELUPE_RECIPE=str(recipe), PUBLIC_URL="https://train.example")
    assert done.returncode == 1 and "verdict: refused" in done.stdout, done.stdout + done.stderr
    run = json.loads(home.run("runs", "--json").stdout)[0]["run_id"]
    assert alerts.titles() == ["CodeLupe tiny-codelupe: run 1 promoted", f"CodeLupe tiny-codelupe: run {run} refused"]
    first, second = (body["message"] for body in alerts.taken)
    assert first.startswith("Run 1 of the stream tiny-codelupe was promoted and published as version 1: ")
    assert second.startswith(f"Run {run} of the stream tiny-codelupe was refused: changed: ")
    assert second.endswith(". https://train.example")
    log = (home.home / "logs" / "continuous_training_qwen.log").read_text() + done.stdout + done.stderr
    assert f"json://127.0.0.1:{alerts.port}" in log
    assert SECRET not in log and PASSWORD not in log
