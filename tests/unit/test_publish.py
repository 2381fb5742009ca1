"""Publishing: verified copy, pointer swap, retention."""

import errno
import gzip
import json
import os
import tracemalloc
from datetime import UTC, datetime
from pathlib import Path

import pytest

from db.adapters import Adapter
from service.publish import folders as publish
from service.publish.folders import Beat, copy_candidate, pointer_target, retire, sync_pointer, tidy_run
from service.settings.home import Home
from trainer.records import json_line
from trainer.run_dir import RunDirectory, RunDirectoryError, read_json, verify_manifest, write_json, write_manifest


def adapter(version: int, current: bool = False) -> Adapter:
    return Adapter(
        version=version, stream="s", parent_version=None, folder=f"v{version:06d}", manifest_sha256="0" * 64,
        evaluation={}, published_at=datetime.now(UTC), is_current=current,
    )  # fmt: skip


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path)
    home.prepare()
    return home


@pytest.fixture
def run(home: Home) -> RunDirectory:
    directory = home.run(3)
    directory.adapter.mkdir(parents=True)
    (directory.adapter / "adapter_model.safetensors").write_bytes(os.urandom(1000))
    (directory.adapter / "adapter_config.json").write_text("{}")
    write_manifest(directory.adapter)
    directory.recipe.write_text("name: r\n")
    row = {"file_id": 1, "repository": "r", "path": "p", "language": "python", "content": "x", "sha256": "ab"}
    directory.rows.write_text(json_line(row))
    directory.held_out.write_text("")
    directory.checkpoints.mkdir()
    write_manifest(directory.root, run_id=3, stream="s", seed=1, parent_version=None, base={"model": "m"})
    return directory


def test_the_copy_is_whole_verified_and_knows_its_lineage(home: Home, run: RunDirectory):
    published = copy_candidate(home, run, 3, {"evaluation": {"candidate": {"loss": 1.0}}})
    assert published.folder == home.adapter(3)
    verify_manifest(published.folder)
    lineage = json.loads((published.folder / "lineage.json").read_text())
    assert lineage["rows"] == [{"file_id": 1, "sha256": "ab"}]
    assert lineage["evaluation"]["candidate"]["loss"] == 1.0


def test_a_damaged_candidate_is_not_copied(home: Home, run: RunDirectory):
    (run.adapter / "adapter_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(RunDirectoryError, match=r"adapter_model.safetensors has changed"):
        copy_candidate(home, run, 3, {"evaluation": {}})
    assert not home.adapter(3).exists()


def test_a_copy_that_differs_from_its_original_is_not_published(home: Home, run: RunDirectory, monkeypatch):
    """The copy's own manifest would call it complete."""

    def flipped(source: Path, target: Path, beat: Beat) -> None:
        first, *others = source.read_bytes()
        target.write_bytes(bytes([first ^ 1, *others]))

    monkeypatch.setattr(publish, "_copy_file", flipped)
    with pytest.raises(RunDirectoryError, match="differs from the original"):
        copy_candidate(home, run, 3, {"evaluation": {}})
    assert not home.adapter(3).exists()


def test_a_copy_that_reads_back_differently_is_removed(home: Home, run: RunDirectory, monkeypatch):
    def damaged(folder: Path, beat: Beat) -> None:
        if folder == home.adapter(3):
            (folder / "adapter_model.safetensors").write_bytes(b"damaged")
        verify_manifest(folder, beat)

    monkeypatch.setattr(publish, "verify_manifest", damaged)
    with pytest.raises(RunDirectoryError, match=r"adapter_model.safetensors has changed"):
        copy_candidate(home, run, 3, {"evaluation": {}})
    assert not home.adapter(3).exists()


def test_publishing_again_after_a_crash_replaces_the_folder(home: Home, run: RunDirectory):
    first = copy_candidate(home, run, 3, {"evaluation": {}})
    second = copy_candidate(home, run, 3, {"evaluation": {}})
    assert first.manifest_sha256 == second.manifest_sha256


def test_a_folder_in_place_of_the_pointer_is_not_touched(home: Home):
    home.adapter(1).mkdir()
    home.pointer("s").mkdir()
    with pytest.raises(FileExistsError, match="not a symlink"):
        sync_pointer(home, "s", adapter(1, True))
    assert home.pointer("s").is_dir()


def test_the_pointer_follows_the_database(home: Home):
    for version in (1, 2):
        home.adapter(version).mkdir()
    assert not sync_pointer(home, "s", None)
    assert sync_pointer(home, "s", adapter(1, True))
    assert not sync_pointer(home, "s", adapter(1, True))
    assert sync_pointer(home, "s", adapter(2, True))
    assert pointer_target(home, "s") == "adapters/v000002"
    assert sync_pointer(home, "s", None)
    assert pointer_target(home, "s") is None


def test_a_swap_that_fails_leaves_the_pointer_as_it_was(home: Home, monkeypatch):
    for version in (1, 2):
        home.adapter(version).mkdir()
    sync_pointer(home, "s", adapter(1, True))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "symlink_to", full)
    with pytest.raises(OSError, match="No space left"):
        sync_pointer(home, "s", adapter(2, True))
    assert pointer_target(home, "s") == "adapters/v000001"


def test_the_pointer_never_names_a_missing_folder(home: Home):
    home.adapter(1).mkdir()
    sync_pointer(home, "s", adapter(1, True))
    with pytest.raises(FileNotFoundError, match="v000002 does not exist"):
        sync_pointer(home, "s", adapter(2, True))
    assert pointer_target(home, "s") == "adapters/v000001"
    home.adapter(1).rmdir()
    with pytest.raises(FileNotFoundError, match="v000001 does not exist"):
        sync_pointer(home, "s", adapter(1, True))


def test_retention_keeps_the_newest_and_current(home: Home):
    for version in range(1, 7):
        home.adapter(version).mkdir()
    leftovers = [home.adapters / ".v000009.123.tmp", home.runs / ".000010.tmp"]
    for leftover in leftovers:
        leftover.mkdir()
    (home.adapters / "v99999999999999999999").mkdir()  # not ours: no version is that large
    foreign = [home.runs / ".syncthing.a.tmp", home.adapters / ".link.tmp"]  # not folders, so not ours
    foreign[0].touch()
    foreign[1].symlink_to(home.runs)
    assert home.adapter_versions() == [1, 2, 3, 4, 5, 6]
    history = [adapter(version, version == 1) for version in range(1, 7)]
    retire(home, history, keep=2)
    assert sorted(path.name for path in home.adapters.glob("v0*")) == ["v000001", "v000005", "v000006"]
    assert not any(leftover.exists() for leftover in leftovers)
    assert all(path.exists() for path in foreign)


def test_the_memory_of_the_search_for_leftovers_does_not_grow_with_the_runs(home: Home):
    for number in range(2000):
        home.run(number).root.mkdir()
    assert home.leftovers() == []
    tracemalloc.start()
    try:
        home.leftovers()
        assert tracemalloc.get_traced_memory()[1] < 20_000
    finally:
        tracemalloc.stop()


def test_tidying_compresses_rows_and_may_be_repeated(run: RunDirectory):
    text = run.rows.read_bytes()
    tidy_run(run)
    tidy_run(run)
    assert not run.rows.exists() and not run.checkpoints.exists() and not run.adapter.exists()
    assert gzip.decompress((run.root / "rows.jsonl.gz").read_bytes()) == text


@pytest.mark.parametrize("damage", [b"not gzip", b""])
def test_damaged_rows_of_a_trunk_run_do_not_stop_a_publication(home: Home, run: RunDirectory, damage: bytes):
    """The database has these rows too. Only lineage.json lacks them."""
    earlier = home.run(2)
    earlier.root.mkdir(parents=True)
    earlier.rows.with_name("rows.jsonl.gz").write_bytes(damage)
    earlier.rows_outcome.write_text('{"file_id": 1, "outco')
    manifest = read_json(run.manifest)
    write_json(run.manifest, manifest | {"trunk": [2]})
    published = copy_candidate(home, run, 3, {"evaluation": {}})
    lineage = read_json(published.folder / "lineage.json")
    assert lineage["trunk"] == [2] and {row["file_id"] for row in lineage["rows"]}
