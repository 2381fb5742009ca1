"""`codelupe audit` checks the disk: adapters, lineage and runs agree with the database."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_claim_run import STREAM, World

from db import runs, settling
from db.adapters import NewAdapter
from service.publish import evidence
from service.publish.evidence import disk_problems
from service.publish.folders import copy_candidate, tidy_run
from trainer.records import RowOutcome, read_rows, write_outcomes
from trainer.run_dir import RunDirectory, RunDirectoryError, new_folder, sha256_file, write_json, write_manifest


@pytest.fixture
def world(pool: Any, tmp_path: Path) -> World:
    """A service that has published once and tidied up."""
    world = World(pool, tmp_path / "home")
    world.insert(20)
    claimed = world.claim()
    assert claimed.run_id == 1
    run = world.home.run(1)
    outcomes = [RowOutcome(file_id=row.file_id, outcome="trained", tokens=5) for row in read_rows(run.rows)]
    tokens = 5 * len(outcomes)
    outcomes += [RowOutcome(file_id=row.file_id, outcome="held_out", tokens=1) for row in read_rows(run.held_out)]
    write_outcomes(run.rows_outcome, outcomes)
    with new_folder(run.adapter) as folder:
        (folder / "adapter_model.safetensors").write_bytes(b"weights")
        write_manifest(folder)
    report = {"evaluation": {}, "train": {"tokens_published": tokens}}
    published = copy_candidate(world.home, run, 1, report)
    for state in ("training", "judging"):
        runs.advance(pool, world.lease, 1, state)
    adapter = NewAdapter(folder=published.folder.name, manifest_sha256=published.manifest_sha256, evaluation={})
    settling.publish(pool, world.lease, 1, outcomes, adapter, report)
    offline = run.root / "wandb" / "offline-run-1" / "run-1.wandb"
    offline.parent.mkdir(parents=True)
    offline.touch()
    tidy_run(run)
    assert offline.exists(), "what was not sent yet must stay"
    assert disk_problems(world.home, pool, STREAM) == []
    return world


def resigned(folder: Path, name: str, change: Callable[[Any], None]) -> None:
    """Change a JSON file and adapt the manifest, as somebody would to hide the change."""
    path = folder / name
    value = json.loads(path.read_text())
    change(value)
    write_json(path, value)
    write_manifest(folder, version=1)


def damage_bytes(world: World) -> None:
    (world.home.adapter(1) / "adapter_model.safetensors").write_bytes(b"weighty")


def damage_manifest(world: World) -> None:
    resigned(world.home.adapter(1), "lineage.json", lambda lineage: lineage.update(seed=7))


def lose_folder(world: World) -> None:
    world.home.adapter(1).rename(world.home.adapters / "elsewhere")


def other_rows(world: World) -> None:
    run = world.home.run(1)
    with gzip.open(run.root / "rows.jsonl.gz", "at") as file:
        file.write("{}\n")


def other_outcomes(world: World) -> None:
    path = world.home.run(1).rows_outcome
    path.write_text(path.read_text().replace('"tokens":5', '"tokens":6', 1))


def garbage(world: World) -> None:
    (world.home.run(1).root / "rows.jsonl.gz").write_bytes(b"no gzip")


def garbage_beyond_the_header(world: World) -> None:
    (world.home.run(1).root / "rows.jsonl.gz").write_bytes(gzip.compress(b"")[:10] + b"\xff" * 20)


def no_text(world: World) -> None:
    world.home.run(1).rows_outcome.write_bytes(b"\xff")


def unreadable(world: World) -> None:
    path = world.home.run(1).rows_outcome
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (damage_bytes, "version 1: .* does not match its MANIFEST.json: adapter_model.safetensors has changed"),
        (damage_manifest, "version 1: .* is not version 1 of this database: its MANIFEST.json has sha256"),
        (lose_folder, "the folder of the current adapter, .* does not exist"),
        (other_rows, "version 1: .*rows.jsonl differs from the file that the adapter was trained on"),
        (other_outcomes, "rows_outcome.jsonl and the database disagree on the trained rows: files "),
        (garbage, "rows.jsonl.gz cannot be read"),
        (garbage_beyond_the_header, "rows.jsonl.gz cannot be read"),
        (no_text, "rows_outcome.jsonl cannot be read"),
        (unreadable, "rows_outcome.jsonl cannot be read"),
    ],
)
def test_mismatches_are_reported(world: World, damage: Callable[[World], None], said: str):
    damage(world)
    [problem] = disk_problems(world.home, world.pool, STREAM)
    assert re.search(said, problem)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lineage: lineage.update(parent_version=3), "says version 1 from 3, the database says from None"),
        (lambda lineage: lineage["rows"].append({"file_id": 999, "sha256": ""}), "did not claim: files 999"),
        (lambda lineage: lineage.pop("inputs"), "its lineage.json cannot be read"),
    ],
)
def test_a_different_lineage_is_reported(world: World, change: Callable[[Any], None], said: str):
    """It looks as if it had been published like this, because the database has the manifest's hash."""
    folder = world.home.adapter(1)
    resigned(folder, "lineage.json", change)
    with world.pool.transaction() as cursor:
        cursor.execute("update codelupe.adapters set manifest_sha256 = %s", [sha256_file(folder / "MANIFEST.json")])
    assert any(said in problem for problem in disk_problems(world.home, world.pool, STREAM))


def test_adapters_removed_by_retention_are_not_a_problem(world: World):
    with world.pool.transaction() as cursor:
        cursor.execute("update codelupe.adapters set is_current = false")
    lose_folder(world)
    run = RunDirectory(world.home.run(1).root)
    (run.root / "rows.jsonl.gz").unlink()
    assert disk_problems(world.home, world.pool, STREAM) == []


def test_a_folder_that_a_service_removes_during_an_audit_is_not_a_problem(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This happens if adapters beyond KEEP_ADAPTERS are removed during an audit."""

    def half_removed(*_: object) -> None:
        shutil.rmtree(world.home.adapter(1))
        raise RunDirectoryError("adapter_model.safetensors is missing")

    with world.pool.transaction() as cursor:
        cursor.execute("update codelupe.adapters set is_current = false")
    monkeypatch.setattr(evidence, "verify_adapter", half_removed)
    assert disk_problems(world.home, world.pool, STREAM) == []


def test_an_adapter_that_is_replaced_during_an_audit_may_be_missing(world: World, monkeypatch: pytest.MonkeyPatch):
    def followed(_: float) -> None:
        with world.pool.transaction() as cursor:
            cursor.execute("update codelupe.adapters set is_current = false")

    lose_folder(world)
    monkeypatch.setattr("service.publish.evidence.time.sleep", followed)
    assert disk_problems(world.home, world.pool, STREAM) == []


def test_rows_that_a_service_compresses_during_an_audit_are_not_a_problem(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The audit sees the file, but it has another name when the audit opens it."""
    run = RunDirectory(world.home.run(1).root)
    with gzip.open(run.root / "rows.jsonl.gz") as packed:
        run.rows.write_bytes(packed.read())

    def packed_first(path: Path) -> str:
        if path == run.rows:
            run.rows.unlink()
        return sha256_file(path)

    monkeypatch.setattr(evidence, "sha256_file", packed_first)
    assert disk_problems(world.home, world.pool, STREAM) == []
