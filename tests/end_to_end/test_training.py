"""`codelupe train` and `codelupe sweep`: from files to adapters, without a service."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from driver import COMMAND, Codelupe, quick_recipe

from trainer.recipe_file import load_recipe
from trainer.run_dir import read_json, verify_manifest

pytestmark = pytest.mark.timeout(300)

RECIPE = "phased-kat-dev"
PHASES = [
    {"name": "foundation", "file": "phase1_foundation.jsonl", "num_epochs": 3},
    {"name": "evolution", "file": "phase2_evolution.jsonl", "num_epochs": 2},
    {"name": "pr_mastery", "file": "phase3_pr_mastery.jsonl", "num_epochs": 2},
]
ROWS_EACH = 14


def texts() -> list[str]:
    root = Path(sysconfig.get_path("stdlib"))
    found = sorted(path for path in root.glob("[a-z]*/*.py") if 800 < path.stat().st_size < 5000)
    return [path.read_text(encoding="utf-8") for path in found if "test" not in str(path)][: 3 * ROWS_EACH]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Codelupe]:
    """Yield a folder with the data and the recipe of a curriculum."""
    place = Codelupe(tmp_path_factory.mktemp("training"))
    data = place.home / "data"
    data.mkdir()
    for number, (phase, start) in enumerate(zip(PHASES, range(0, 3 * ROWS_EACH, ROWS_EACH), strict=True)):
        lines = [
            json.dumps({"training_content": text, "quality_score": -5}) for text in texts()[start : start + ROWS_EACH]
        ]
        assert len(lines) == ROWS_EACH, number
        (data / str(phase["file"])).write_text("\n".join(lines) + "\n", encoding="utf-8")
    (place.home / "loose.py").write_text(texts()[0], encoding="utf-8")
    yield place


@pytest.fixture(scope="module")
def trained(place: Codelupe) -> Path:
    """Train the curriculum, with an interruption in its second phase. Return its folder."""
    folder = place.home / "var" / "phased"
    command = ["train", "--recipe", RECIPE, "--from", "data", "--to", str(folder), "--smoke"]
    process = subprocess.Popen(
        [*COMMAND, *command], env=place.environment, cwd=place.home, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    events, deadline = folder / "runs" / "000002" / "events.jsonl", time.monotonic() + 120
    while not (events.exists() and '"stage":"samples"' in events.read_text(encoding="utf-8")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "The same command resumes it" in errors
    assert not (folder / "runs" / "000003").exists()
    done = place.run(*command, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "adapter: " in done.stdout and "CODELUPE_HOME=" in done.stdout
    return folder


def test_each_phase_has_its_epochs_and_continues_from_the_last(trained: Path) -> None:
    for number, phase in enumerate(PHASES, 1):
        run = trained / "runs" / f"{number:06d}"
        report, manifest = read_json(run / "report.json"), read_json(run / "MANIFEST.json")
        assert report["phase"] == manifest["phase"] == phase["name"]
        assert load_recipe(run / "recipe.yaml").training.num_epochs == phase["num_epochs"]
        assert (run / "parent").exists() == (number > 1)
        assert any((run / "checkpoints").iterdir()) and (run / "adapter" / "adapter_config.json").is_file()


def test_what_was_trained_in_a_phase_is_that_phase_s_rows(place: Codelupe, trained: Path) -> None:
    inside = {"CODELUPE_HOME": str(trained), "CODELUPE_RECIPE": RECIPE}
    shown = place.run("runs", "2", "--json", **inside)
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["phase"] == "evolution"
    verify_manifest(trained / "runs" / "000003" / "adapter")


def test_the_same_command_again_says_what_was_found(place: Codelupe, trained: Path) -> None:
    again = place.run(
        "train", "--recipe", RECIPE, "--from", "data", "--to", str(trained), "--smoke", "--json", timeout=60
    )
    assert again.returncode == 0, again.stderr
    found = json.loads(again.stdout)
    listed = place.run("runs", "--json", CODELUPE_HOME=str(trained), CODELUPE_RECIPE="")  # the folder has its recipe
    assert [run["phase"] for run in json.loads(listed.stdout)] == [phase["name"] for phase in PHASES][::-1]
    assert [one["phase"] for one in found["phases"]] == [phase["name"] for phase in PHASES]
    assert all(one["evaluation"]["candidate"]["perplexity"] > 1 for one in found["phases"])
    assert not (trained / "runs" / "000004").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--from", "data", "--set", "learning_rate=1e-3"],
            "holds another training (phased-kat-dev): the recipe or an option",
        ),
        (["--from", "data/phase1_foundation.jsonl"], "phase2_evolution.jsonl (phase evolution), phase3_pr_mastery"),
        (["--from", "nowhere"], "no such file or folder: nowhere"),
        (["--from", "data", "--set", "rate=1"], "a recipe has no value 'rate'"),
        (["--from", "data", "--set", "lora.rank=0"], "lora.rank: 0 is below the minimum, 1"),
        (["--from", "loose.py", "--to", "elsewhere"], "no row has the phase foundation or evolution or pr_mastery"),
        (["--from", "data", "--to", "."], "is not empty, and holds no training"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_loaded(
    place: Codelupe, trained: Path, arguments: list[str], said: str
) -> None:
    to = [] if "--to" in arguments else ["--to", str(trained)]
    done = place.run("train", "--recipe", RECIPE, "--smoke", *arguments, *to, timeout=30)
    assert done.returncode == 2 and said in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not (place.home / "elsewhere" / "runs" / "000001").exists()


@pytest.mark.long
def test_a_sweep_ranks_its_trials_and_keeps_the_best_adapter(place: Codelupe) -> None:
    quick_recipe(place.home / "plain.yaml", name="plain", stream="plain")
    command = ["sweep", "--recipe", "plain.yaml", "--from", "data", "--smoke", "--set", "learning_rate=1e-6,1e-2"]
    done = place.run(*command, "--json", timeout=200)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    first, second = found["trials"]
    assert [one["params"]["training.learning_rate"] for one in (first, second)] == [1e-2, 1e-6]
    assert first["loss"] < second["loss"] and first["against_best"] is None
    assert second["against_best"]["low"] > 0
    folder = Path(found["folder"])
    assert (Path(first["folder"]) / "adapter").is_dir() and not (Path(second["folder"]) / "adapter").exists()
    assert "<svg" in (folder / "sweep.svg").read_text(encoding="utf-8")
    rows = [(Path(one["folder"]) / "rows.jsonl").read_bytes() for one in (first, second)]
    assert rows[0] == rows[1]
    again = place.run(*command, "--json", timeout=60)
    assert json.loads(again.stdout)["trials"] == found["trials"]


@pytest.mark.long
def test_a_folder_in_which_nothing_was_trained_can_be_used_again(place: Codelupe) -> None:
    command = ["train", "--recipe", RECIPE, "--smoke", "--to", "mistaken"]
    assert place.run(*command, "--from", "loose.py").returncode == 2
    done = place.run(*command, "--from", "nothing.py")
    assert done.returncode == 2 and "no such file" in done.stderr
    done = place.run("train", "--recipe", RECIPE, "--to", "mistaken", "--from", "data", "--set", "batch_size=0")
    assert done.returncode == 2 and "batch_size: 0 is below" in done.stderr
    done = place.run(
        "sweep", "--recipe", RECIPE, "--to", "mistaken", "--from", "loose.py", "--set", "rank=4,8", "--smoke"
    )
    assert done.returncode == 2 and "no row has the phase" in done.stderr, done.stderr


@pytest.mark.long
def test_sources_that_gave_nothing_to_train_on_are_read_again(place: Codelupe) -> None:
    records, lines = place.home / "records.jsonl", texts()[:10]
    records.write_text("".join(json.dumps({"content": text}) + "\n" for text in lines), encoding="utf-8")
    command = ["train", "--recipe", RECIPE, "--smoke", "--to", "mended dir", "--from", "records.jsonl"]
    done = place.run(*command)
    assert done.returncode == 2 and "The rows have: none (10)" in done.stderr
    mended = [{"content": text, "phase": PHASES[0]["name"]} for text in lines]
    records.write_text("".join(json.dumps(one) + "\n" for one in mended), encoding="utf-8")
    done = place.run(*command)
    assert done.returncode == 2 and "The rows have: foundation (10)" in done.stderr


def test_rows_that_are_all_ineligible_are_read_again(place: Codelupe) -> None:
    (place.home / "long.jsonl").write_text(json.dumps({"content": "x = 1\n" * 200_000}) + "\n", encoding="utf-8")
    done = place.run("train", "--recipe", "embedded", "--smoke", "--to", "long", "--from", "long.jsonl", timeout=90)
    assert done.returncode == 1 and "no row waits (1 too_long)" in done.stderr
    assert read_json(place.home / "long" / "training.json")["unfit"]


def test_ctrl_c_while_the_toy_is_made_shows_no_traceback(place: Codelupe) -> None:
    command = [*COMMAND, "train", "--recipe", RECIPE, "--from", "data", "--to", "early", "--smoke"]
    process = subprocess.Popen(
        command, env=place.environment, cwd=place.home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (place.home / "early" / "training.json").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    time.sleep(1.0)  # the toy's process imports torch
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0 and "Traceback" not in errors, errors
    assert not (place.home / "early" / "toy").exists()


def test_a_machine_that_is_not_ready_is_told_before_anything_is_read(place: Codelupe) -> None:
    offline = {"HF_HUB_OFFLINE": "1"}
    done = place.run("train", "--recipe", "phased-kat-dev", "--from", "data", "--to", "kat", timeout=90, **offline)
    assert done.returncode == 3 and "this machine is not ready for the recipe" in done.stderr, done.stderr
    assert "base.model: Kwaipilot/KAT-Dev is not in the local cache" in done.stderr
    assert "· cards" in done.stdout and "0 of 8 cards" in done.stdout
    assert not (place.home / "kat" / "postgres").exists()


def test_a_phase_that_the_recipe_lacks_is_refused(place: Codelupe) -> None:
    done = place.run("drop", "loose.py", "--phase", "three", "--recipe", RECIPE)
    assert done.returncode == 2 and "--phase: 'three' is not a phase of the recipe phased-kat-dev" in done.stderr
