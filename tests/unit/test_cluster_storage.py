"""Without a shared folder: a run travels by a storage, whole or not at all, and its results come back."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
import time
from pathlib import Path

import pytest
from run_folder import events, run, same, short_recipe, short_run, weights
from test_cluster import TWO, cluster, on, wait_for  # noqa: F401  (a fixture)

from service.cycle.launch import TrainerProcess
from trainer.cluster.courier import Courier
from trainer.cluster.driver import run_name
from trainer.cluster.storage import Storage, bring_results, fetch_run, send_results, send_run
from trainer.errors import ClusterFailed, RecipeError, UnusableInput
from trainer.fit.checkpoint import checkpoints
from trainer.recipe_file import parse_recipe
from trainer.run_dir import MANIFEST, RunDirectory, write_manifest

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (make dev)")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Another machine's temporary folder, for this process."""
    (tmp_path / "machine").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "machine"))


def checkpoint(directory: RunDirectory, step: int, content: str = "weights") -> Path:
    path = directory.checkpoints / f"step-{step:06d}"
    path.mkdir(parents=True)
    (path / "adapter.safetensors").write_text(content)
    (path / "optimizer").mkdir()
    (path / "optimizer" / "shard").write_text(content)
    write_manifest(path)
    return path


def names(directory: RunDirectory) -> list[str]:
    return sorted(path.name for path in checkpoints(directory.checkpoints))


def test_a_run_goes_to_another_machine_and_comes_back(tmp_path, machine):
    parent = tmp_path / "parent"
    parent.mkdir()
    (parent / "adapter_config.json").write_text("{}")
    write_manifest(parent)
    directory = short_run(tmp_path / "run", parent=parent)
    checkpoint(directory, 3)
    directory.events.write_text("earlier\n")
    storage = Storage(f"file://{tmp_path}/store", "name")
    send_run(storage, directory, "one")
    there = RunDirectory(fetch_run(storage, "name", "one"))
    assert there.events.read_text() == "earlier\n"
    assert there.rows.read_bytes() == directory.rows.read_bytes() and names(there) == ["step-000003"]
    assert (there.parent / "adapter_config.json").is_file() and there.root != directory.root
    assert fetch_run(storage, "name", "one") == there.root
    checkpoint(there, 6)
    shutil.rmtree(there.checkpoints / "step-000003")
    for name in ("report.json", "rows_outcome.jsonl"):
        (there.root / name).write_text(name)
    for place, name in ((there, "second"), (directory, "first")):
        (place.root / "tensorboard").mkdir()
        (place.root / "tensorboard" / name).touch()
    there.adapter.mkdir()
    (there.adapter / "adapter_model.safetensors").write_text("adapter")
    write_manifest(there.adapter)
    send_results(storage, there, "one")
    bring_results(storage, directory, "other")
    assert not directory.report.exists(), "another attempt's results are not this one's"
    bring_results(storage, directory, "one")
    assert names(directory) == ["step-000006"]
    assert sorted(path.name for path in (directory.root / "tensorboard").iterdir()) == ["first", "second"]
    assert directory.report.read_text() == "report.json" and (directory.adapter / MANIFEST).is_file()
    (there.root / "left").touch()
    assert not (fetch_run(storage, "name", "two") / "left").exists(), "a new attempt starts from what was sent"


def test_what_is_half_there_or_changed_is_not_read(tmp_path, machine):
    directory = short_run(tmp_path / "run")
    storage = Storage(f"file://{tmp_path}/store", "name")
    checkpoint(directory, 3)
    checkpoint(directory, 6)
    send_run(storage, directory, "one")
    stored = tmp_path / "store/name/checkpoints"
    (stored / "step-000006/optimizer/shard").write_text("changed")
    (stored / "step-000009").mkdir()
    (stored / "step-000009/adapter.safetensors").write_text("no manifest yet")
    there = RunDirectory(fetch_run(storage, "name", "one"))
    assert names(there) == ["step-000003"]
    assert [path.name for path in there.checkpoints.iterdir()] == ["step-000003"], "nor under another name"
    (tmp_path / "store/name/inputs/rows.jsonl").write_text("")
    with pytest.raises(ClusterFailed, match="no complete inputs"):
        fetch_run(storage, "name", "two")
    directory.rows.write_text("")
    with pytest.raises(UnusableInput, match=r"rows\.jsonl has changed"):
        send_run(storage, directory, "one")


def test_events_are_handed_out_once_and_whole(tmp_path):
    directory = short_run(tmp_path / "run")
    directory.events.write_text('{"event": "of an earlier start"}\n')
    courier = Courier(Storage(f"file://{tmp_path}/store", "name"), directory, "one", lambda: True)
    with directory.events.open("a") as file:
        file.write('{"event": "a"}\n{"event"')
    assert courier.events() == '{"event": "a"}\n'
    with directory.events.open("a") as file:
        file.write(': "b"}\n')
    assert courier.events() == '{"event": "b"}\n' and courier.events() == ""
    assert courier.finish() is None


def test_a_storage_that_cannot_be_used_is_named(tmp_path):
    with pytest.raises(UnusableInput, match=r"nosuch://a cannot be used.*pip install s3fs"):
        Storage("nosuch://a", "name")
    (tmp_path / "file").touch()
    with pytest.raises(ClusterFailed, match="file/a failed"):
        send_run(Storage(f"file://{tmp_path}/file/a", "name"), short_run(tmp_path / "run"), "one")
    for distributed, expected in (
        ({"storage": "/folder"}, "is no URL"),
        ({"storage": "s3://"}, "is no URL"),
        ({"storage": "://bucket"}, "is no URL"),
        ({"address": "nowhere"}, "nowhere is neither auto nor HOST:PORT"),
        ({"storage": "s3://a", "processes": 2, "strategy": "fsdp2"}, "in a shared folder"),
    ):
        with pytest.raises(RecipeError, match=expected):
            parse_recipe({"name": "a", "stream": "a", "distributed": {"launcher": "ray", **distributed}}, where="it")


@needs_ray
@pytest.mark.long
@pytest.mark.timeout(600)
def test_machines_without_the_run_directory_train_it_and_lose_one(tmp_path, cluster):  # noqa: F811
    how = {"evaluation__interval_fraction": 0.1, "training__num_epochs": 6}
    recipe = on(cluster, **how, distributed__storage=f"file://{tmp_path}/store")
    directory = short_run(tmp_path / "run", recipe)
    process = TrainerProcess(directory, {})
    wait_for(directory, "checkpoint")
    stored, end = tmp_path / "store" / run_name(directory) / "checkpoints", time.monotonic() + 20
    while not list(stored.glob(f"step-*/{MANIFEST}")):
        assert time.monotonic() < end, "no checkpoint came to the storage"
        time.sleep(0.05)
    cluster.remove_node(cluster.two[1], allow_graceful=False)
    assert process.wait(400) == 0, directory.log.read_text()[-3000:]
    started = events(directory, "started")
    assert [event["world_size"] for event in started] == [2, 1] and started[1]["resumed_from_step"] >= 1
    assert len(events(directory, "machine_lost")) == 1 and len(events(directory, "finished")) == 1
    whole = short_run(tmp_path / "whole", short_recipe(**(TWO | how | {"distributed__launcher": "process"})))
    assert run(whole) == 0
    assert directory.rows_outcome.read_bytes() == whole.rows_outcome.read_bytes()
    assert weights(directory.adapter).keys() == weights(whole.adapter).keys() and names(directory) == names(whole)
    assert not same(weights(directory.adapter), {})
    there = Path(tempfile.gettempdir())
    for path in there.glob(f"{run_name(directory)}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
