"""Bad input gives one clear message and exit code 2 or 3, without a traceback."""

import json
import socket
import subprocess
from pathlib import Path

import pytest
from driver import Codelupe

GOOD = "name: t\nstream: t\nbase: {model: tiny-qwen2}\nservice: {min_new_files: 5}\n"


def check_refused(done, code: int, *parts: str) -> None:
    text = done.stdout + done.stderr
    assert done.returncode == code, text
    assert "Traceback" not in text
    for part in parts:
        assert part in text


def test_a_bad_setting_is_refused(codelupe: Codelupe):
    done = codelupe.run("up", MIN_NEW_FILES="x", METRICS_PORT="99999")
    check_refused(done, 2, "MIN_NEW_FILES: 'x'", "METRICS_PORT: '99999'")


def test_a_bad_setting_is_reported_in_json(codelupe: Codelupe):
    done = codelupe.run("up", MIN_NEW_FILES="x", LOG_FORMAT="json")
    check_refused(done, 2, "MIN_NEW_FILES: 'x'")
    assert [json.loads(line)["exit_code"] for line in done.stderr.splitlines()] == [2]


def test_a_missing_recipe_is_refused(codelupe: Codelupe):
    check_refused(codelupe.run("up", "--recipe", "nowhere.yaml"), 2, "nowhere.yaml")


def test_bad_recipe_keys_are_refused(codelupe: Codelupe, tmp_path: Path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(GOOD + "lora: {rnak: 3}\ntraining: {num_epochs: 0}\n")
    check_refused(codelupe.run("up", "--recipe", str(recipe)), 2, "lora.rnak", "training.num_epochs")


@pytest.mark.parametrize(
    ("lines", "part"),
    [
        ("lora: {targets: [q_proj, nonsense_proj]}\n", "nonsense_proj"),
        ("data: {builders: {nonsense: 1}}\n", "nonsense"),
    ],
)
def test_a_recipe_that_does_not_fit_its_base_is_refused(codelupe: Codelupe, tmp_path: Path, lines: str, part: str):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(GOOD + lines)
    check_refused(codelupe.run("up", "--recipe", str(recipe)), 2, part)


def test_a_missing_benchmark_is_refused(codelupe: Codelupe):
    done = codelupe.run("up", BENCHMARK_FILES="absent.jsonl")
    check_refused(done, 3, "the benchmark absent.jsonl cannot be read", "BENCHMARK_FILES")


def test_a_missing_model_is_refused(codelupe: Codelupe, tmp_path: Path):
    check_refused(codelupe.run("up", "--model", str(tmp_path / "no-such-model")), 2, "no-such-model")


@pytest.mark.long
def test_an_unreachable_database_is_reported_without_its_password(codelupe: Codelupe):
    done = codelupe.run("status", DATABASE_URL="postgresql://me:hidden@127.0.0.1:1/x")
    check_refused(done, 3, "DATABASE_URL")
    assert "hidden" not in done.stdout + done.stderr


def test_a_database_of_a_newer_version_is_refused(codelupe: Codelupe, tmp_path: Path):
    from db import embedded

    (tmp_path / "a.yaml").write_text(GOOD)
    url = bound(codelupe, tmp_path / "a.yaml")
    psql = [embedded.programs() / "psql", url, "--set=ON_ERROR_STOP=1", "-c"]
    subprocess.run([*psql, "insert into codelupe.migrations values ('9999_later.sql', '0')"], check=True)
    for command in (("status",), ("up", "--recipe", str(tmp_path / "a.yaml"))):
        done = codelupe.run(*command, DATABASE_URL=url)
        check_refused(done, 3, "does not know (9999_later.sql)", "newer version has used it. Update the program")
    subprocess.run([*psql, "delete from codelupe.migrations where name = '9999_later.sql'"], check=True)


def test_a_port_in_use_is_refused(codelupe: Codelupe):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        check_refused(codelupe.run("up", METRICS_PORT=port), 3, port, "METRICS_PORT")


@pytest.mark.long
def test_a_failed_start_is_reported_in_json(codelupe: Codelupe, tmp_path: Path):
    done = codelupe.run("up", "--model", str(tmp_path / "no-such-model"), LOG_FORMAT="json")
    check_refused(done, 2)
    stages = [json.loads(line)["message"] for line in done.stdout.splitlines()]
    assert stages == ["database", "migrations"]
    errors = [json.loads(line) for line in done.stderr.splitlines()]
    assert any("no-such-model" in line.get("said", "") for line in errors)  # printed by the trainer's process
    last = errors[-1]
    assert (last["message"], last["exit_code"]) == ("Service failed", 2)
    assert json.loads(codelupe.text(codelupe.home / "logs" / "continuous_training_qwen.log").splitlines()[-1]) == last


def test_dropping_a_missing_folder_is_refused(codelupe: Codelupe):
    check_refused(codelupe.run("drop", "/no/such/folder"), 2, "/no/such/folder")


@pytest.mark.long
def test_a_stream_refuses_another_lora_rank(codelupe: Codelupe, tmp_path: Path):
    (tmp_path / "a.yaml").write_text(GOOD)
    (tmp_path / "b.yaml").write_text(GOOD + "lora: {rank: 8}\n")
    url = bound(codelupe, tmp_path / "a.yaml")
    done = codelupe.run("up", "--recipe", str(tmp_path / "b.yaml"), DATABASE_URL=url)
    check_refused(done, 3, "rank", "stream")


def bound(codelupe: Codelupe, recipe: Path) -> str:
    """Start a database, and bind the recipe's stream in it, as its first `up` would. Return its URL."""
    from db import embedded, migrate, streams
    from db.pool import Pool

    url = embedded.start(codelupe.home / "postgres")
    pool = Pool(url)
    migrate.apply(pool)
    lora = {"rank": 256, "alpha": 512, "targets": sorted(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])}  # fmt: skip
    binding = streams.Binding(source="code_files", base_model="tiny-qwen2", base_revision="0" * 40, lora=lora)
    streams.bind(pool, "t", binding)
    pool.close()
    return url
