"""What the trainer tells about its long stages in events.jsonl."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_folder import events, run, short_run

from trainer import events as events_module
from trainer.events import Events
from trainer.model.loading import download_options, loading_told


def test_a_run_tells_rows_tensors_and_measured_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_module, "PROGRESS_SECONDS", 0.0)
    directory = short_run(tmp_path / "run")
    assert run(directory) == 0
    told: dict[str, list[tuple[int, int]]] = {}
    for event in events(directory, "progress"):
        told.setdefault(event["stage"], []).append((event["done"], event["total"]))
    assert told["samples"] == [(4, 24), (24, 24)]
    assert told["model"][0][0] == 0 and len({total for _, total in told["model"]}) == 1 < len(told["model"])
    done = [one for one, total in told["evaluation"]]
    assert max(done) == max(total for _, total in told["evaluation"]) > 0


def test_a_short_run_writes_none(tmp_path: Path) -> None:
    told = Events(tmp_path / "events.jsonl")
    for done in range(1000):
        told.progress("samples", done, 1000)
    assert not (tmp_path / "events.jsonl").exists()


def test_progress_is_written_at_most_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 100_000, 1))
    monkeypatch.setattr(events_module.time, "monotonic", lambda: next(clock) / 4)
    told = Events(tmp_path / "events.jsonl")
    for done in range(40):
        told.progress("samples", done, 40)
    assert (tmp_path / "events.jsonl").read_text().count('"progress"') == 9


def test_the_hub_s_counts_are_told_and_nothing_is_drawn(capfd: pytest.CaptureFixture[str]) -> None:
    told: list[tuple[str, int, int]] = []
    assert download_options() == {}
    with loading_told(lambda *one: told.append(one)):
        bar = download_options()["tqdm_class"](desc="model.safetensors", total=300, unit="B", unit_scale=True, name="x")
        bar.update(100)
        bar.update(200)
        bar.close()
        with download_options()["tqdm_class"](desc="Downloading bytes", total=300, unit="B") as packed:
            packed.update(50)
        with download_options()["tqdm_class"](desc="Fetching 2 files", total=2) as files:
            files.update(1)
    assert told == [("download", 100, 300), ("download", 300, 300)]
    assert capfd.readouterr().err == "" and download_options() == {}
