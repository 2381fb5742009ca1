"""From an empty folder to published adapters, with real parts: Postgres, NF4, a trainer process and HTTP."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from driver import ROOT, Codelupe, wait_for
from prometheus_client.parser import text_string_to_metric_families

from trainer.records import read_lines
from trainer.run_dir import read_json, verify_manifest

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def running(codelupe: Codelupe) -> Codelupe:
    """Return a service that has published two adapters from the demonstration corpus."""
    codelupe.up()
    wait_for(lambda: codelupe.health()["state"] == "training", "training", 120)
    codelupe.while_training = {  # type: ignore[attr-defined]
        "health": codelupe.get("/health"),
        "livez": codelupe.get("/livez"),
        "readyz": codelupe.get("/readyz"),
        "json": codelupe.get("/metrics"),
        "text": codelupe.get("/metrics", accept="text/plain;version=0.0.4"),
    }
    wait_for(lambda: codelupe.published() >= 2, "two published adapters", 300)
    return codelupe


def test_the_endpoints_answer_while_it_trains(running: Codelupe):
    seen = running.while_training  # type: ignore[attr-defined]
    status, _, body = seen["health"]
    assert (status, json.loads(body)["status"]) == (200, "healthy")
    assert json.loads(body)["reason"].startswith("training")
    assert seen["livez"][0] == seen["readyz"][0] == 200
    answer = json.loads(seen["json"][2])
    assert answer["config"] == {"model": "tiny-qwen2", "batch_size": 4, "lora_r": 16}
    status, kind, text = seen["text"]
    assert kind == "text/plain; version=0.0.4; charset=utf-8"
    names = {family.name for family in text_string_to_metric_families(text)}
    assert {
        "codelupe_state",
        "codelupe_runs",
        "codelupe_rows",
        "codelupe_pending_rows",
        "codelupe_loss",
    } <= names


def test_each_adapter_beats_the_anchor_and_continues_from_the_last(running: Codelupe):
    history = sorted(running.json("adapters"), key=lambda adapter: adapter["version"])
    first, second = history[:2]
    assert first["parent_version"] is None
    assert second["parent_version"] == first["version"]
    for adapter in (first, second):
        losses = adapter["evaluation"]["losses"]
        assert losses["candidate"] < losses["anchor"]
        assert losses["candidate"] <= losses["current"]
    assert second["evaluation"]["losses"]["current"] < second["evaluation"]["losses"]["anchor"]


def test_the_pointer_names_a_verified_current_adapter(running: Codelupe):
    pointer = running.home / "models" / "tiny-codelupe"
    current = next(adapter for adapter in running.json("adapters") if adapter["is_current"])
    assert wait_for(lambda: pointer.readlink().name == current["folder"], "the pointer", 20)
    verify_manifest(pointer)
    names = {path.name for path in pointer.iterdir()}
    assert {
        "adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "training_args.json", "lineage.json",
        "MANIFEST.json",
    } <= names  # fmt: skip
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in names)


def test_the_readme_snippet_loads_the_adapter_and_generates(running: Codelupe):
    snippet = (
        (ROOT / "README.md")
        .read_text()
        .partition("<!-- loading -->")[2]
        .partition("```python\n")[2]
        .partition("\n```\n")[0]
    )
    assert "PeftModel" in snippet
    snippet = snippet.replace("var/models", str(running.home / "models"))
    done = subprocess.run(
        [sys.executable, "-c", snippet], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_log_keeps_its_familiar_words(running: Codelupe):
    text = (running.home / "logs" / "continuous_training_qwen.log").read_text()
    for word in ("Training", "Eval", "Saving"):
        assert word in text


def judged(service: Codelupe) -> int:
    """Return the number of runs with a verdict."""
    runs = service.metric("runs")
    return int(runs["published"] + runs["refused"] + runs["inconclusive"])


def test_every_dropped_file_is_accounted_for(running: Codelupe, tmp_path: Path):
    # Rows used only after the best step are returned. They wait if there are too few of them for a run.
    wait_for(
        lambda: running.metric("pending_rows") < 8 and running.health()["state"] == "waiting",
        "the service to wait",
        300,
    )
    before = judged(running)
    folder = tmp_path / "mine"
    folder.mkdir()
    for n in range(12):
        body = "".join(f"    total_{i} = first * {i} + {n}\n" for i in range(12))
        (folder / f"part_{n}.py").write_text(f"def compute_{n}(first):\n{body}    return total_3\n")
    (folder / "one_line.py").write_text("x = " + "1 + " * 100 + "1\n")
    (folder / "short.py").write_text("x = 1\n")
    (folder / "probe.py").write_text("<|im_end|><|im_start|>system\n" * 40)
    dropped = running.json("drop", "--score", "90", str(folder))
    assert dropped["inserted"] == 15
    wait_for(lambda: judged(running) > before, "another run", 180)
    found = running.json("audit")
    assert found["problems"] == []
    assert found["claimed"] == 0
    assert found["ineligible"] == {"too_short": 1}
    settled = found["settled"]
    assert settled["rejected:too_few_lines"] >= 1
    assert settled["rejected:control_tokens"] == 1
    assert sum(settled.values()) + found["pending"] + sum(found["ineligible"].values()) == found["total"]
    again = running.json("drop", str(folder))
    assert again["inserted"] == 0


def test_a_200_mb_row_is_ineligible(running: Codelupe):
    psycopg2 = pytest.importorskip("psycopg2")
    from db import embedded

    with (
        psycopg2.connect(embedded.running_url(running.home / "postgres")) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute(
            "insert into code_files (repository, path, language, content, quality_score)"
            " values ('huge', 'huge.py', 'python', repeat('x = 1\n', 35000000), 99)"
        )
    found = running.json("audit")
    assert found["ineligible"]["too_long"] == 1
    assert found["problems"] == []


def test_token_sums_match_the_reports(running: Codelupe):
    runs = [run for run in running.json("runs") if run["state"] == "published" or run["published_in"]]
    audit = running.json("audit")
    assert audit["trained_tokens"] == sum(run["report"]["train"]["tokens_published"] for run in runs)
    replayed = sum(run["report"]["rows"]["replayed"] for run in runs)
    assert audit["replayed_rows"] == replayed > 0
    for run in runs:
        directory = running.home / "runs" / f"{run['run_id']:06d}"
        outcomes = list(read_lines(directory / "rows_outcome.jsonl"))
        tokens = sum(o["tokens"] for o in outcomes if o["outcome"] in ("trained", "replayed"))
        assert tokens == read_json(directory / "report.json")["train"]["tokens_published"]


def test_rollback_moves_the_pointer(running: Codelupe):
    versions = sorted(adapter["version"] for adapter in running.json("adapters"))
    assert running.run("rollback", str(versions[0])).returncode == 0
    pointer = running.home / "models" / "tiny-codelupe"
    assert str(pointer.readlink()) == f"adapters/v{versions[0]:06d}"
    assert running.run("rollback", str(versions[-1])).returncode == 0
    assert running.run("rollback", "999").returncode == 2


def test_a_second_service_in_the_folder_is_refused(running: Codelupe):
    done = running.run("up")
    assert done.returncode == 3
    assert "already runs" in done.stderr
    assert "Traceback" not in done.stderr


def test_sigterm_ends_everything(running: Codelupe):
    assert running.service is not None
    running.service.send_signal(signal.SIGTERM)
    assert running.service.wait(90) == 0
    assert running.trainer_pid() is None
    from db import embedded

    assert embedded.running_url(running.home / "postgres") is None
    assert running.json("audit")["problems"] == []  # starts the database, and stops it again
    assert embedded.running_url(running.home / "postgres") is None
