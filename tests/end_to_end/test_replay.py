"""`codelupe replay` trains a settled run again in a new folder, and reports whether the result is the same."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from driver import Codelupe

pytestmark = [pytest.mark.timeout(300), pytest.mark.long]


@pytest.fixture(scope="module")
def settled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Codelupe]:
    """Yield a home with one published run whose rows are packed."""
    service = Codelupe(tmp_path_factory.mktemp("replay"), MAX_DATASET_SIZE="30", SAMPLE_PREDICTIONS="0")
    done = service.run("up", "--once", timeout=200)
    assert done.returncode == 0, done.stderr
    assert (run_folder(service) / "rows.jsonl.gz").exists() and not (run_folder(service) / "rows.jsonl").exists()
    yield service
    service.stop()


def run_folder(service: Codelupe) -> Path:
    return service.home / "runs" / "000001"


def test_the_trackers_have_the_verdict_when_the_service_ends(settled: Codelupe):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = run_folder(settled)
    verdict = json.loads((run / "verdict.json").read_text())
    assert verdict["decision"] == "promote" and verdict["version"] == 1
    assert (run / verdict["adapter"] / "lineage.json").exists() and (run / "verdict_sent.json").exists()
    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    assert board.Scalars("gate/promoted")[0].value == 1 and "gate/rules/whole" in board.Tags()["scalars"]


def test_a_published_run_gives_the_same_adapter_again(settled: Codelupe):
    done = settled.run("replay", "1", timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the same adapter, byte for byte" in done.stdout
    assert "Training step" in done.stderr and "Eval candidate" in done.stderr
    folder = settled.home / "replays" / "000001"
    weights = "adapter_model.safetensors"
    published = settled.home / "models" / "adapters" / "v000001" / weights
    assert (folder / "adapter" / weights).read_bytes() == published.read_bytes()
    again = settled.run("replay", "1")
    assert again.returncode == 2 and "exists already; choose another folder with --to" in again.stderr


@pytest.mark.long
def test_a_different_result_is_reported(settled: Codelupe, tmp_path: Path):
    """The recorded losses are changed and the run's adapter cannot be found, so the losses differ."""
    copy = tmp_path / "run"
    shutil.copytree(run_folder(settled), copy, symlinks=True)
    report = json.loads((copy / "report.json").read_text())
    report["evaluation"]["candidate"]["loss"] += 0.25
    (copy / "report.json").write_text(json.dumps(report))
    done = settled.run("replay", str(copy), "--to", str(tmp_path / "again"), "--json", timeout=200)
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert found["same"] is False and found["compared"] == "evaluation"
    assert found["expected"]["candidate"] - found["found"]["candidate"] == pytest.approx(0.25)


def test_damaged_rows_are_reported_and_nothing_is_trained(settled: Codelupe, tmp_path: Path):
    copy = tmp_path / "run"
    shutil.copytree(run_folder(settled), copy, symlinks=True)
    rows = gzip.decompress((copy / "rows.jsonl.gz").read_bytes())
    (copy / "rows.jsonl.gz").write_bytes(gzip.compress(rows.replace(b"import", b"export", 1)))
    done = settled.run("replay", str(copy), "--to", str(tmp_path / "changed"))
    assert done.returncode == 1 and "rows.jsonl" in done.stderr and "Traceback" not in done.stderr
    (copy / "rows.jsonl.gz").write_bytes(b"not a gzip file")
    done = settled.run("replay", str(copy), "--to", str(tmp_path / "torn"))
    assert done.returncode == 3 and "cannot be copied" in done.stderr
    assert not (tmp_path / "torn").exists()


@pytest.mark.parametrize(
    ("run", "complaint"),
    [("7", "there is no run 7"), ("nowhere", "neither a run's number nor a folder"), (".", "is not a run directory")],
)
def test_an_invalid_run_is_a_usage_error(settled: Codelupe, run: str, complaint: str):
    done = settled.run("replay", run)
    assert done.returncode == 2 and complaint in done.stderr and "Traceback" not in done.stderr


def test_the_trainer_explains_how_to_train_a_settled_folder_again(settled: Codelupe, tmp_path: Path):
    copy = tmp_path / "run"
    shutil.copytree(run_folder(settled), copy, symlinks=True)
    (copy / "report.json").unlink()
    from trainer.check import check_run
    from trainer.errors import UnusableInput
    from trainer.run_dir import RunDirectory

    with pytest.raises(UnusableInput, match=r"settled run, and its rows are packed.*codelupe replay"):
        check_run(RunDirectory(copy))
