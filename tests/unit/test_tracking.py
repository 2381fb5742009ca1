"""A run that is killed and resumed, and its verdict, at W&B and in TensorBoard: every series is read back."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import wandb_file
from run_folder import events, make_row, make_run, program, short_recipe, short_rows
from wandb_stand_in import wandb_server

from service.cli import main as cli
from service.cycle.verdicts import energy_cost, write_verdict
from service.publish.folders import copy_candidate
from service.settings.home import Home
from service.settings.parsers import price
from trainer.__main__ import track_command
from trainer.recipe import Recipe
from trainer.recipe_file import load_recipe, recipe_dict
from trainer.run_dir import MANIFEST, RunDirectory, held_lock, read_json, sha256_file
from trainer.track import wandb_tracker
from trainer.track.trackers import Worker
from trainer.track.wandb_tracker import WandbBackend

HERE = Path(__file__).parent
DRIVER = f"""
import sys
import time
from pathlib import Path
sys.path.insert(0, {str(HERE)!r})
import nvml_stand_in
import trainer.device_readings
import trainer.fit.loop
import trainer.model.memory
from trainer.__main__ import main
nvml_stand_in.install()
trainer.device_readings.READ_SECONDS = 0.1
trainer.model.memory.cards_in_use = lambda: list(nvml_stand_in.UUIDS)

def step(self, take=trainer.fit.loop.Fit._step):
    while not list(Path(sys.argv[1]).glob("wandb/*/*.wandb")):  # the steps of this test are faster than W&B's start
        time.sleep(0.02)
    time.sleep(0.3)
    take(self)

trainer.fit.loop.Fit._step = step
sys.exit(main(["run", sys.argv[1]]))
"""
"""Trains as the service does, on two cards that only NVML's stand-in has."""
TRAINED = {"train/loss", "train/learning_rate", "train/grad_norm", "train/tokens_per_second", "memory/gpu_bytes"}
EVALUATED = {"eval/loss", "eval/perplexity", "eval/token_accuracy"}
CARDS = {"utilization_percent", "memory_used_bytes", "memory_total_bytes", "power_watts", "temperature_celsius"}
READ = {f"gpu/{name}" for name in (*CARDS, "energy_joules", *(f"{card}/{name}" for card in (0, 1) for name in CARDS))}
HOST = {"host/process_memory_bytes", "host/process_cpu_percent"}
JUDGED = {
    "gate/promoted", "gate/rules/gain", "gate/rules/whole", "gate/new/difference", "gate/new/low", "gate/new/high",
    "gate/new/files", "gate/loss/anchor", "gate/loss/current", "gate/loss/candidate",
}  # fmt: skip
COST = {"energy/joules", "energy/kwh", "energy/cost"}
VERDICT: dict[str, Any] = {
    "decision": "promote",
    "promote": True,
    "reasons": ["gain: better by 0.2"],
    "rules": [
        {"rule": "whole", "outcome": "pass", "text": "all finite", "numbers": {}},
        {"rule": "gain", "outcome": "inconclusive", "text": "better by 0.2", "numbers": {}},
    ],
    "intervals": {"new": {"difference": -0.2, "low": -0.3, "high": -0.1, "files": 4, "level": 0.95}},
}


@dataclass(frozen=True, kw_only=True)
class Followed:
    home: Home
    run: RunDirectory
    files: list[Path]
    first_joules: float


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Followed:
    """A training, killed a step after its checkpoint, resumed, published and told to the trackers."""
    home = Home(tmp_path_factory.mktemp("home"))
    home.prepare()
    recipe = short_recipe(tracking__tensorboard=True, training__load_best=False)
    held_out = [make_row(101 + index, program(101 + index, 8)) for index in range(3)]
    run = make_run(home.run(1).root, recipe, short_rows(20), held_out)
    first = _start(run)
    _wait(lambda: len(events(run, "step")) == 4 or first.poll() is not None)
    time.sleep(0.15)  # the trackers' threads log the step after its event
    first.kill()
    first.wait()
    assert not run.report.exists()
    _wait(
        lambda: any(
            record.HasField("exit") for path in wandb_file.files_of(run.root) for record in wandb_file.records(path)
        )
    )
    joules = events(run, "device")[-1]["energy_joules"]
    assert _start(run).wait(120) == 0, run.log.read_text()
    report = {**read_json(run.report), "verdict": VERDICT}
    copy_candidate(home, run, 1, report)
    write_verdict(home, 1, VERDICT, energy_cost(report, price("0.5 EUR")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        assert track_command(run.root) == 0
    return Followed(home=home, run=run, files=wandb_file.files_of(run.root), first_joules=joules)


def _start(run: RunDirectory) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    with run.log.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(run.root)], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            env={**environment, "WANDB_MODE": "offline", "PYTHONPATH": str(HERE.parents[1])},
        )  # fmt: skip


def _wait(reached: Any, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def curves(files: list[Path]) -> dict[int, dict[str, float]]:
    """Return the numbers of each step. A step that was done again after the kill has the later ones."""
    found: dict[int, dict[str, float]] = {}
    for row in wandb_file.history(files):
        step = int(row.pop("step"))
        numbers = {name: float(value) for name, value in row.items() if "/" in name and isinstance(value, int | float)}
        found.setdefault(step, {}).update({k: v for k, v in numbers.items() if not k.startswith("predictions/")})
    return found


def test_every_series_is_in_the_offline_files(followed: Followed) -> None:
    rows = curves(followed.files)
    assert sorted(rows) == [0, 1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in wandb_file.history(followed.files)] == [0, 1, 2, 3, 4, 4, 5, 6], "step 4 twice"
    axes = [record.metric for record in wandb_file.records(followed.files[0]) if record.HasField("metric")]
    assert [(axis.glob_name, axis.step_metric) for axis in axes if axis.glob_name] == [("*", "step")]
    assert rows[0].keys() >= EVALUATED
    for step in range(1, 6):
        assert rows[step].keys() >= TRAINED, step
    assert rows[3].keys() >= EVALUATED and rows[5].keys() >= EVALUATED
    assert set().union(*(rows[step] for step in range(1, 6))) >= READ | HOST
    assert rows[6].keys() == JUDGED | COST
    steps = {event["step"]: event for event in events(followed.run, "step")}
    assert {step: rows[step]["train/loss"] for step in steps} == {s: pytest.approx(e["loss"]) for s, e in steps.items()}
    assert rows[6]["gate/rules/gain"] == 0.5 and rows[6]["gate/promoted"] == 1.0 and rows[6]["gate/new/low"] == -0.3


def test_a_resumed_run_and_its_verdict_are_one_run_of_the_stream(followed: Followed) -> None:
    assert len(followed.files) == 3
    recipe = load_recipe(followed.run.recipe)
    for path in followed.files:
        run = wandb_file.run_record(path)
        assert run.run_id == (followed.run.root / "wandb" / "id").read_text().strip()
        assert (run.run_group, run.job_type, run.display_name) == (recipe.stream, "cycle", f"{recipe.stream}-000001")
        assert list(run.tags) == ["embedded", "tiny-qwen2"] and run.resume
        config = wandb_file.config(path)
        assert config["training"]["checkpointing"] == "none"  # the recipe says auto
        assert config["run"]["steps_total"] == 5 and config["run"]["run_id"] == 1
        assert config["data"] == json.loads(json.dumps(recipe_dict(recipe)["data"]))


def test_answers_are_one_table_that_grows(followed: Followed) -> None:
    tables = [
        json.loads(path.read_text())
        for path in sorted(followed.run.root.glob("wandb/offline-run-*/files/media/table/*"), key=os.path.getmtime)
    ]
    assert [[row[:2] for row in table["data"]] for table in tables] == [[[0, 101]], [[0, 101], [5, 101]]]
    assert tables[-1]["columns"] == ["step", "file_id", "prompt", "expected", "answer"]
    assert [(event["step"], event["file_id"]) for event in events(followed.run, "prediction")] == [(0, 101), (5, 101)]
    assert wandb_file.summary(followed.files)["predictions/nrows"] == 2


def test_the_verdict_and_the_adapter_with_its_lineage(followed: Followed) -> None:
    summary = wandb_file.summary(followed.files)
    assert summary["gate/decision"] == "promote" and summary["gate/reasons"] == "gain: better by 0.2"
    assert summary["gate/found/gain"] == "inconclusive: better by 0.2" and summary["energy/currency"] == "EUR"
    (artifact,) = wandb_file.artifacts(followed.files[-1])
    assert (artifact.name, artifact.type) == ("tiny-codelupe", "model")
    assert {"adapter-v000001", "current"} <= set(artifact.aliases)
    folder = followed.home.adapter(1)
    about = json.loads(artifact.metadata)
    assert about["manifest_sha256"] == sha256_file(folder / MANIFEST)
    assert about["parent_version"] is None and about["base"]["model"] == "tiny-qwen2" and about["rows"] == 20
    assert about["recipe"] == "embedded" and about["evaluation"]["candidate"]["loss"] > 0
    references = {entry.path: entry.ref for entry in artifact.manifest.contents}
    assert references["adapter_model.safetensors"] == (folder / "adapter_model.safetensors").resolve().as_uri()
    assert track_command(followed.run.root) == 0  # it was sent: nothing is written again
    assert len(wandb_file.files_of(followed.run.root)) == 3


def test_tensorboard_has_the_same_numbers_under_the_same_names(followed: Followed) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(followed.run.root / "tensorboard"), size_guidance={"scalars": 0})
    board.Reload()
    shown: dict[int, dict[str, float]] = {}
    for name in board.Tags()["scalars"]:
        steps = [event.step for event in board.Scalars(name)]
        assert len(steps) == len(set(steps)), f"{name} has a step twice"
        for event in board.Scalars(name):
            shown.setdefault(event.step, {})[name] = event.value
    rows = curves(followed.files)
    assert {name for values in shown.values() for name in values} == {name for row in rows.values() for name in row}
    assert shown.keys() == rows.keys()
    for step, values in shown.items():
        assert values == {name: pytest.approx(value, rel=1e-5) for name, value in rows[step].items()}, step
    texts = {tag.removesuffix("/text_summary") for tag in board.Tags()["tensors"]}
    assert texts >= {"predictions/101", "gate/decision", "gate/reasons", "gate/found/gain"}


def test_energy_is_summed_over_the_starts(followed: Followed) -> None:
    report = read_json(followed.run.report)
    told = [event["energy_joules"] for event in events(followed.run, "device") if "energy_joules" in event]
    assert told == sorted(told), "the second start goes on from the first"
    assert report["energy_joules"] > followed.first_joules > 0 and report["energy_source"] == "counter"
    started = [event["time"] for event in events(followed.run, "started")]
    ended = [events(followed.run, "step")[3]["time"], events(followed.run)[-1]["time"]]
    seconds = sum(end - start for start, end in zip(started, ended, strict=True))
    assert report["energy_joules"] == pytest.approx(400 * seconds, rel=0.3)  # two cards of 200 W
    assert events(followed.run, "energy")[-1]["joules"] >= report["energy_joules"]
    cost = read_json(followed.run.verdict)["energy_cost"]
    assert cost == {
        "amount": pytest.approx(report["energy_joules"] / 3.6e6 * 0.5, abs=1e-6),
        "per_kwh": 0.5,
        "currency": "EUR",
    }


# --- wandb-sync: wandb's own command, and a server that stands in for W&B's -----------------------------------


@pytest.fixture
def codelupe(
    followed: Followed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Any:
    def run(*arguments: str, **environment: str) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("CODELUPE_HOME", str(followed.home.root))
        for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["codelupe", "wandb-sync", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


@pytest.mark.long
def test_offline_folders_arrive_as_one_run(followed: Followed, codelupe: Any) -> None:
    code, _, said = codelupe()
    assert code == 3 and "3 folders wait, but WANDB_API_KEY is not set" in said
    code, listed, _ = codelupe("--dry-run", "--json")
    assert code == 0 and [one["outcome"] for one in json.loads(listed)] == ["waits"] * 3
    key = "k" * 40
    code, listed, _ = codelupe("1", "--json", "--seconds", "5", WANDB_API_KEY=key, WANDB_BASE_URL="http://127.0.0.1:9")
    assert code == 1 and [one["outcome"] for one in json.loads(listed)] == ["failed", "waits", "waits"]
    assert key not in listed
    with wandb_server() as server:
        given = {"WANDB_API_KEY": key, "WANDB_BASE_URL": server.url, "WANDB_MODE": "offline"}
        code, listed, said = codelupe("--json", **given)
        assert code == 0, (listed, said)
        assert [one["outcome"] for one in json.loads(listed)] == ["sent"] * 3
        (rows,) = server.history.values()
        (run,) = server.runs.values()
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4, 4, 5, 6]
    arrived: dict[int, set[str]] = {}
    for row in rows:
        arrived.setdefault(row["step"], set()).update(_flat(row))
    for step, values in curves(followed.files).items():
        assert values.keys() <= arrived[step], step
    assert run["groupName"] == "tiny-codelupe" and '"steps_total":5' in run["config"]
    assert {"tiny-codelupe"} <= {one["artifactCollectionName"] for one in server.artifacts}
    code, listed, _ = codelupe("--json", **given)
    assert code == 0 and [one["outcome"] for one in json.loads(listed)] == ["was sent"] * 3


def _flat(values: dict[str, Any], before: str = "") -> set[str]:
    return {f"{before}{name}" for name in values} | {
        inner for name, value in values.items() if isinstance(value, dict) for inner in _flat(value, f"{before}{name}/")
    }


@pytest.mark.long
def test_what_an_outage_cut_off_is_sent_later(codelupe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is away when the first run begins, goes away during the second, and takes the third."""
    monkeypatch.setattr(wandb_tracker, "OPEN_SECONDS", 1.5)
    said: list[tuple[str, str]] = []

    def follow(name: str, url: str, meanwhile: Callable[[], None], seconds: float) -> None:
        run = RunDirectory(tmp_path / "runs" / name)
        run.root.mkdir(parents=True)
        given = {"WANDB_API_KEY": "k" * 40, "WANDB_BASE_URL": url}
        recipe = Recipe(name="r", stream="s")
        backend = WandbBackend(
            recipe, run, run_name="n", mode="online", facts={}, environment=given, finish_seconds=seconds
        )
        worker = Worker("wandb", backend, lambda _, message: said.append((name, message)))
        worker.submit("log", lambda _: backend.log(0, {"train/loss": 1.0}))
        _wait(worker._tasks.empty)
        meanwhile()
        for step in (1, 2):
            worker.submit("log", lambda _, step=step: backend.log(step, {"train/loss": 1.0}))
        worker.finish()
        worker.wait(30, since=time.monotonic())

    follow("000001", "http://127.0.0.1:9", lambda: None, 20)
    with wandb_server() as server:
        follow("000002", server.url, server.close, 1.5)
    with wandb_server() as server:
        follow("000003", server.url, lambda: None, 20)
        assert [len(rows) for rows in server.history.values()] == [3]
        assert [name for name, _ in said] == ["000001", "000002"]
        assert "the run is written to files" in said[0][1] and "`codelupe wandb-sync` sends the rest" in said[1][1]
        given = {"WANDB_API_KEY": "k" * 40, "WANDB_BASE_URL": server.url}
        code, listed, _ = codelupe(str(tmp_path), "--json", **given)
        sent = [(one["run"], one["outcome"]) for one in json.loads(listed)]
        assert code == 0 and sent == [("000001", "sent"), ("000002", "sent")]
        assert [[row["step"] for row in rows] for rows in server.history.values()] == [[0, 1, 2]] * 3


def test_a_run_in_use_is_left_for_later(codelupe: Any, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "runs" / "000001")
    folder = run.root / "wandb" / "offline-run-20260101_000000-s-000001"
    folder.mkdir(parents=True)
    (folder / "run-s-000001.wandb").touch()
    (run.root / "wandb" / "id").write_text("s-000001")
    for held, outcome in ((True, "in use"), (False, "waits")):
        with held_lock(run.lock, wait_seconds=0) if held else contextlib.nullcontext():
            code, listed, _ = codelupe(str(tmp_path), "--json", "--dry-run")
        assert code == 0 and [one["outcome"] for one in json.loads(listed)] == [outcome]


def test_what_is_no_run_is_named(codelupe: Any) -> None:
    code, _, said = codelupe("77")
    assert code == 2 and "'77' is neither the number of a run" in said
