"""Backup and restore with the commands of docs/backup.md. The lineage continues on another machine."""

import json
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from driver import ROOT, Codelupe, quick_recipe, wait_for

from db import embedded
from trainer.run_dir import verify_manifest

pytestmark = [pytest.mark.timeout(600), pytest.mark.long]

FILES = 24


def commands(name: str, folder: Path) -> str:
    """Return one block of docs/backup.md for a folder whose CODELUPE_HOME is `var`."""
    block = (ROOT / "docs" / "backup.md").read_text().partition(f"<!-- {name} -->")[2].partition("```sh\n")[2]
    return f"set -eu\ncd {folder}\nexport PYTHONPATH={ROOT}\n" + block.partition("\n```")[0].replace(
        ".venv/bin/python", str(Path(subprocess.sys.executable))
    )


def shell(text: str) -> str:
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def feed(service: Codelupe, name: str) -> None:
    """Drop enough files for one run."""
    root = service.home.parent / name
    root.mkdir()
    for n in range(FILES):
        lines = "".join(f"    {name}_{i} = values[{i}] * {n + i}\n" for i in range(20))
        (root / f"file_{n}.py").write_text(f"def {name}_{n}(values):\n{lines}    return {name}_0\n")
    assert service.json("drop", str(root))["inserted"] == FILES


@pytest.fixture(scope="module")
def machines() -> Iterator[tuple[Path, Path]]:
    """Yield the folders of the old and the new machine. Their paths are short because of the sockets."""
    root = Path(tempfile.mkdtemp(prefix="codelupe-tests-"))
    for name in ("old", "new"):
        (root / name).mkdir()
    yield root / "old", root / "new"
    for name in ("old", "new"):
        embedded.stop(root / name / "var" / "postgres")
    shutil.rmtree(root)


@pytest.fixture(scope="module")
def recipe(machines: tuple[Path, Path]) -> Path:
    """Return the embedded recipe with a gate that accepts every candidate."""
    gate = {"evidence": "point", "examination": False, "tolerance": 9.0}
    return quick_recipe(machines[0].parent / "recipe.yaml", stream="kept", gate=gate)


def service_in(folder: Path, recipe: Path, **more: str) -> Codelupe:
    return Codelupe(
        folder / "var", CODELUPE_RECIPE=str(recipe), MAX_DATASET_SIZE="30", MIN_NEW_FILES="20", SAMPLE_PREDICTIONS="0",
        **more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def backup(machines: tuple[Path, Path], recipe: Path) -> Path:
    """Make a dump while run 2 trains on version 1, and copy the models after run 2 is published."""
    old = service_in(machines[0], recipe)
    try:
        old.up("--no-demo")
        feed(old, "first")
        wait_for(lambda: old.published() == 1, "the first adapter", 200)
        feed(old, "second")
        wait_for(lambda: old.trainer_pid() and (old.metric("step") or 0) >= 1, "the second run's first step", 120)
        dump, tar, copy = commands("backup", machines[0]).rpartition("\ntar ")
        shell(dump)
        wait_for(lambda: old.published() == 2, "the second adapter", 200)
        shell(commands("backup", machines[0]).partition("mkdir")[0] + tar + copy)
    finally:
        old.stop()
    return machines[0] / "backup"


@pytest.fixture(scope="module")
def restored(machines: tuple[Path, Path], recipe: Path, backup: Path) -> Iterator[Codelupe]:
    """Yield a service on the new machine. It gets its database by URL."""
    shutil.copytree(backup, machines[1] / "backup")
    shell(commands("restore", machines[1]))
    adapters = machines[1] / "var" / "models" / "adapters"
    shutil.copytree(adapters / "v000002", adapters / "v000003")  # from a run that the dump does not contain
    url = embedded.running_url(machines[1] / "var" / "postgres")
    assert url is not None
    in_docs = re.search(r"`(update codelupe\.leases .*?)`", (ROOT / "docs" / "backup.md").read_text())
    assert in_docs is not None
    subprocess.run([embedded.programs() / "psql", url, "-c", in_docs.group(1)], check=True, capture_output=True)
    new = service_in(machines[1], recipe, DATABASE_URL=url, LOG_FORMAT="json")
    new.up("--no-demo")
    yield new
    new.stop()


def test_the_lineage_continues(restored: Codelupe):
    wait_for(lambda: restored.published() == 2, "an adapter from the new machine", 200)
    by_version = {adapter["version"]: adapter for adapter in restored.json("adapters")}
    assert sorted(by_version) == [1, 3]
    assert by_version[3]["parent_version"] == 1 and by_version[3]["is_current"]
    assert [(run["run_id"], run["state"]) for run in restored.json("runs")] == [
        (3, "published"), (2, "returned"), (1, "published"),
    ]  # fmt: skip
    pointer = restored.home / "models" / "kept"
    assert str(pointer.readlink()) == "adapters/v000003"
    assert json.loads((pointer / "lineage.json").read_text())["parent_version"] == 1
    verify_manifest(pointer)


def test_nothing_is_lost_or_trained_twice(restored: Codelupe):
    found = restored.json("audit")
    assert found["problems"] == []
    assert (found["total"], found["claimed"], found["gone"]) == (2 * FILES, 0, 0)
    rows = {
        run: {row["file_id"] for row in json.loads((folder / "lineage.json").read_text())["rows"]}
        for run in (1, 3)
        for folder in [restored.home / "models" / "adapters" / f"v{run:06d}"]
    }
    assert rows[1] and rows[3] and not rows[1] & rows[3]


def test_a_folder_newer_than_the_dump_is_set_aside(restored: Codelupe):
    adapters = restored.home / "models" / "adapters"
    [aside] = adapters.glob("set-aside-v000003-*")
    verify_manifest(aside)
    assert json.loads((aside / "lineage.json").read_text())["version"] == 2
    assert restored.run("rollback", "2").returncode == 3  # the folder exists, but the database has no such version


@pytest.mark.long
def test_a_flipped_bit_stops_training_and_is_reported(restored: Codelupe):
    wait_for(lambda: restored.health()["state"] == "waiting", "the service to wait", 60)
    assert restored.service is not None
    restored.service.send_signal(signal.SIGTERM)
    assert restored.service.wait(60) == 0
    weights = restored.home / "models" / "adapters" / "v000003" / "adapter_model.safetensors"
    sound = weights.read_bytes()
    weights.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    restored.up("--no-demo")
    feed(restored, "third")
    wait_for(lambda: restored.health()["state"] == "paused", "the service to pause", 60)
    health = restored.health()
    assert health["status"] == "degraded"
    assert "v000003 does not match" in health["reason"] and "adapter_model.safetensors has changed" in health["reason"]
    refused = restored.run("rollback", "3")
    assert refused.returncode == 3 and "has changed" in refused.stderr
    assert restored.run("rollback", "1").returncode == 0
    wait_for(lambda: restored.published() == 3, "a run from version 1", 200)
    latest = restored.json("adapters")[0]
    assert (latest["version"], latest["parent_version"]) == (4, 1)
    assert restored.json("audit", "--books-only")["problems"] == []
    found = restored.run("audit")
    assert found.returncode == 1 and "version 3: " in found.stdout and "has changed" in found.stdout


def test_every_output_line_is_json(restored: Codelupe):
    for name in ("up.out", "up.err", "logs/continuous_training_qwen.log"):
        lines = [json.loads(line) for line in restored.text(restored.home / name).splitlines()]
        assert lines and all({"time", "level", "message"} <= set(line) for line in lines)
