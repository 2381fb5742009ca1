"""A run trains on rows of earlier published runs again: which ones, how many, and what the audit proves of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_claim_run import CODE, STREAM, World, published

from db import adapters, runs, settling
from db.errors import RowsRevoked
from db.pool import Pool
from db.revocations import Subject, lineage, revoke
from db.source import claim, earlier_trained
from service.cli.ledger import _print_audit
from service.cycle.claim import Claimed, claim_run
from service.cycle.claim_files import Start
from trainer.recipe import Hygiene
from trainer.records import Outcome, Row, RowOutcome, read_rows
from trainer.run_dir import content_sha256, verify_manifest

ROWS = 40
ALL = 0.9
"""A share for which a third run replays all that it may."""
Query = Callable[..., list[Any]]


class Line(World):
    """Every run goes on from the current adapter."""

    def claim(self) -> Claimed:
        current = adapters.current(self.pool, STREAM)
        return claim_run(self.pool, self.lease, self.home, self.settings, self.recipe, Start(current=current))


@pytest.fixture
def world(pool: Pool, tmp_path: Path) -> World:
    """Two published runs. All rows are equally long."""
    world = Line(pool, tmp_path / "home")
    for version in (1, 2):
        with_replay(world, 0.0)
        world.insert(ROWS, prefix=f"batch{version}")
        published(world, version)
    return world


def with_replay(world: World, fraction: float) -> None:
    world.recipe = replace(world.recipe, data=replace(world.recipe.data, replay_fraction=fraction))


def claim_third(world: World, fraction: float) -> list[Row]:
    """Claim a third batch. Return the rows that the run replays."""
    with_replay(world, fraction)
    world.insert(ROWS, prefix="batch3")
    claimed = world.claim()
    replayed = list(read_rows(world.home.run(3).replay))
    assert claimed.run_id == 3 and claimed.replayed == len(replayed)
    return replayed


def publish_third(world: World, fraction: float) -> None:
    with_replay(world, fraction)
    world.insert(ROWS, prefix="batch3")
    published(world, 3)


def trained(world: World, version: int) -> set[int]:
    return {row.file_id for row in read_rows(world.home.run(version).rows)}


def ids(rows: list[Row]) -> set[int]:
    return {row.file_id for row in rows}


def test_the_share_is_of_the_whole_run_and_even_over_earlier_runs(world: World):
    replayed = claim_third(world, 0.25)
    assert len(replayed) == round(len(trained(world, 3)) / 3)
    counts = Counter(version for row in replayed for version in (1, 2) if row.file_id in trained(world, version))
    assert counts.total() == len(replayed) and abs(counts[1] - counts[2]) <= 1
    assert not any(row.fresh for row in replayed)
    assert all(row.file_id in trained(world, row.run_id or 0) for row in replayed)
    assert "replay.jsonl" in verify_manifest(world.home.run(3).root)["files"]
    found = world.audit()
    assert (found.settled["trained"], found.claimed, found.problems) == (
        len(trained(world, 1) | trained(world, 2)), ROWS, []
    )  # fmt: skip


def test_without_a_share_nothing_is_replayed(world: World):
    assert claim_third(world, 0.0) == []
    assert not world.home.run(3).replay.exists()


def test_without_new_rows_nothing_is_replayed(world: World):
    with_replay(world, ALL)
    assert world.claim().run_id is None


def test_the_draw_depends_on_the_seed_alone(world: World):
    with claim(
        world.pool, world.lease, world.settings.source, world.settings.eligibility, limit=1, parent_version=None, seed=1
    ) as rows:
        drawn = [[row.file_id for row, _ in earlier_trained(rows, seed, 10)] for seed in ("1:3", "1:3", "1:4")]
        rows.cancel()
    assert len(drawn[0]) == 10 and drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("harm", ["changed", "deleted", "low_score", "revoked", "revoked_text", "licence"])
def test_a_row_that_may_not_be_trained_on_any_more_is_passed_over(world: World, query: Query, harm: str):
    bad = min(trained(world, 1))
    good = trained(world, 1) | trained(world, 2)
    match harm:
        case "changed":
            query("update code_files set content = content || 'x = 1' where id = %s", bad)
        case "deleted":
            query("delete from code_files where id = %s", bad)
        case "low_score":
            query("update code_files set quality_score = 1 where id = %s", bad)
        case "revoked":
            revoke(world.pool, world.settings.source, STREAM, Subject(file_id=bad), reason="x")
        case "revoked_text":
            revoke(world.pool, world.settings.source, STREAM, Subject(sha256=content_sha256(CODE)), reason="x")
            good = set()
        case _:
            query("update code_files set license = 'MIT' where id <> %s", bad)
            world.recipe = replace(world.recipe, hygiene=Hygiene(duplicates="none", licenses=("MIT",)))
    world.insert(ROWS, content=CODE + "print(1)\n", prefix="batch3")
    with_replay(world, ALL)
    query("update code_files set license = 'MIT' where path like 'batch3%%'")
    assert world.claim().run_id == 3
    assert ids(list(read_rows(world.home.run(3).replay))) == good - {bad}


def test_rows_of_a_withdrawn_adapter_are_passed_over(world: World, query: Query):
    query("update codelupe.adapters set withdrawn_at = now() where version = 2")
    assert ids(claim_third(world, ALL)) == trained(world, 1)


def test_rows_of_an_adapter_that_was_rolled_back_are_passed_over(world: World):
    adapters.roll_back(world.pool, STREAM, 1)
    assert ids(claim_third(world, ALL)) == trained(world, 1)


def test_rows_of_an_open_candidate_count_once_a_later_run_published_it(world: World, query: Query):
    """Run 1 was inconclusive, and run 2 trained on from its candidate and was published."""
    query("update codelupe.adapters set parent_version = null where version = 2")
    query("delete from codelupe.adapters where version = 1")
    query("update codelupe.runs set state = 'inconclusive', published_in = 2 where run_id = 1")
    assert ids(claim_third(world, ALL)) == trained(world, 1) | trained(world, 2)
    assert world.audit().problems == []


def test_a_held_out_file_is_never_replayed_whatever_its_version(world: World, query: Query):
    """A later claim can hold out another version of a file that was trained on before."""
    bad = min(trained(world, 1))
    query(
        "insert into codelupe.held_out (stream, file_id, run_id, repository, path, language, content, content_sha256)"
        " select %s, 9999, 2, repository, path, language, content, 'x' from code_files where id = %s",
        STREAM,
        bad,
    )
    assert ids(claim_third(world, ALL)) == (trained(world, 1) | trained(world, 2)) - {bad}


def test_secrets_are_replaced_as_in_new_rows(pool: Pool, tmp_path: Path):
    world = Line(pool, tmp_path / "home")
    key = "ghp_" + "aB3dE5fG7hI9jK1lM3nO5pQ7rS9tU1vW3xY5"
    world.insert(ROWS, content=CODE + f"token = '{key}'\n")
    published(world)
    with_replay(world, ALL)
    world.insert(ROWS, prefix="later")
    assert world.claim().run_id == 2
    replayed = list(read_rows(world.home.run(2).replay))
    assert replayed and not any(key in row.content for row in replayed)
    assert all(row.sha256 == content_sha256(row.content) for row in replayed)


def test_replayed_rows_are_counted_and_stay_trained(world: World, query: Query, capsys: pytest.CaptureFixture[str]):
    entries = "select file_id, run_id, disposition, settled_at from codelupe.ledger where run_id < 3 order by 1"
    before = query(entries)
    publish_third(world, 0.25)
    assert query(entries) == before
    found = world.audit()
    replayed = len(list(read_rows(world.home.run(3).replay)))
    assert (found.problems, found.replayed_rows, found.replayed_tokens) == ([], replayed, 0)
    assert found.trained_rows == sum(len(trained(world, version)) for version in (1, 2, 3))
    _print_audit(found)
    assert f"trained again ({replayed} times)" in " ".join(capsys.readouterr().out.split())


def test_a_refused_candidate_leaves_replayed_rows_trained(world: World, query: Query):
    replayed = claim_third(world, 0.25)
    for state in ("training", "judging"):
        runs.advance(world.pool, world.lease, 3, state)  # type: ignore[arg-type]
    of_role: dict[str, Outcome] = {"train": "trained", "replay": "replayed", "held_out": "held_out"}
    outcomes = [
        RowOutcome(file_id=n, outcome=of_role[role])
        for n, role in query("select file_id, role from codelupe.run_rows where run_id = 3")
    ]
    settling.refuse(
        world.pool, world.lease, 3, outcomes, reason="worse", report={}, max_attempts=1, backoff_seconds=1.0
    )
    found = world.audit()
    assert found.problems == [] and found.replayed_rows == 0
    assert {"trained"} == {
        disposition
        for (disposition,) in query(
            "select disposition from codelupe.ledger where file_id = any(%s)", [row.file_id for row in replayed]
        )
    }


def test_a_revoked_row_is_found_in_the_run_that_replayed_it(world: World):
    publish_third(world, 0.25)
    replayed = next(read_rows(world.home.run(3).replay)).file_id
    found = lineage(world.pool, world.settings.source, STREAM, Subject(file_id=replayed))
    assert [(use.role, use.outcome) for use in found.uses] == [("train", "trained"), ("replay", "replayed")]
    assert (3, True) in [(adapter.version, adapter.directly) for adapter in found.adapters]
    revoke(world.pool, world.settings.source, STREAM, Subject(file_id=replayed), reason="x", begin_anew=True)
    current = adapters.current(world.pool, STREAM)
    assert current is None or current.version < 3
    assert world.audit().problems == []


def test_a_run_with_a_replayed_row_that_was_revoked_is_not_published(world: World, monkeypatch: pytest.MonkeyPatch):
    publish = settling.publish

    def revoke_first(*arguments: Any) -> None:
        bad = next(read_rows(world.home.run(3).replay)).file_id
        revoke(world.pool, world.settings.source, STREAM, Subject(file_id=bad), reason="x")
        publish(*arguments)

    monkeypatch.setattr(settling, "publish", revoke_first)
    with pytest.raises(RowsRevoked):
        publish_third(world, 0.25)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        ("untrained", "1 files were replayed, but no earlier published run had trained on them: files 9999"),
        ("text", "1 files were replayed, but no earlier published run had trained on them: files {bad}"),
        ("revoked", "1 files were replayed after they had been revoked: files {bad}"),
        ("held_out", "1 held-out files were trained on: files 9999"),
    ],
)
def test_the_audit_finds(world: World, query: Query, harm: str, said: str):
    bad, text = min(trained(world, 1)), content_sha256(CODE)
    publish_third(world, 0.0)
    replayed = {"untrained": (9999, text), "text": (bad, "0" * 64), "revoked": (bad, text), "held_out": (9999, text)}
    file_id, sha256 = replayed[harm]
    query("insert into codelupe.run_rows values (3, %s, 'replay', %s, 'replayed', 0)", file_id, sha256)
    if harm == "revoked":
        query("insert into codelupe.revocations values (%s, %s, null, 'x', '2020-01-01')", STREAM, bad)
    if harm == "held_out":
        query(
            "insert into codelupe.held_out (stream, file_id, run_id, language, content, content_sha256)"
            " values (%s, 9999, 3, 'python', 'x', 'x')",
            STREAM,
        )
    assert said.format(bad=bad) in world.audit().problems
