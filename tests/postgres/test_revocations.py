"""Which adapters saw a file, and that no later adapter sees a revoked one."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from test_claim_run import CODE, World
from test_claim_run import published as publish_all
from test_verdicts import ledger, published
from world import ADAPTER, ELIGIBLE, STREAM, Outcome, claim_all, digest, fill

from db import adapters, runs, settling
from db.audit import audit
from db.errors import DatabaseError, ParentMoved, RowsRevoked
from db.lease import Lease, fence
from db.pool import Pool
from db.revocations import Subject, lineage, revoke
from db.source import Source
from trainer.records import read_rows
from trainer.run_dir import content_sha256

SOURCE = Source()


@pytest.fixture
def line(pool: Pool, lease: Lease) -> list[int]:
    """Three adapters, each trained on three more files. Files 3, 6 and 9 are held out."""
    versions: list[int] = []
    for held_out in (3, 6, 9):
        fill(pool, 3)
        versions.append(published(pool, lease, parent=versions[-1] if versions else None, held_out=(held_out,)))
    return versions


def problems(pool: Pool) -> list[str]:
    return audit(pool, SOURCE, ELIGIBLE, STREAM).problems


def test_lineage_names_the_adapters_that_saw_a_file_and_their_descendants(pool: Pool, line: list[int]):
    found = lineage(pool, SOURCE, STREAM, Subject(file_id=4))
    assert [(use.run_id, use.role, use.outcome, use.tokens) for use in found.uses] == [
        (line[1], "train", "trained", 10)
    ]
    assert [(a.version, a.directly, a.is_current) for a in found.adapters] == [
        (line[1], True, False), (line[2], False, True),
    ]  # fmt: skip
    assert found.clean_ancestor == line[0] and found.revoked is None
    by_path = lineage(pool, SOURCE, STREAM, Subject(path="src/file4.py"))
    with_repository = lineage(pool, SOURCE, STREAM, Subject(path="owner/repo1/src/file4.py"))
    by_hash = lineage(pool, SOURCE, STREAM, Subject(sha256=found.uses[0].sha256))
    assert found == by_path == with_repository == by_hash


def test_a_held_out_file_was_seen_by_no_adapter(pool: Pool, line: list[int]):
    found = lineage(pool, SOURCE, STREAM, Subject(file_id=3))
    assert found.adapters == [] and found.clean_ancestor == line[2] and found.uses[0].role == "held_out"


def test_an_unknown_row_is_reported(pool: Pool, line: list[int]):
    for subject in (Subject(file_id=77), Subject(path="no/such.py")):
        with pytest.raises(DatabaseError, match="neither code_files nor a run"):
            lineage(pool, SOURCE, STREAM, subject)
    assert lineage(pool, SOURCE, STREAM, Subject(sha256=digest("of nothing"))).uses == []


def test_a_row_that_was_deleted_is_found_by_its_id(pool: Pool, line: list[int], query: Any):
    query("delete from code_files where id = 4")
    assert len(lineage(pool, SOURCE, STREAM, Subject(file_id=4)).adapters) == 2


def test_revoking_alone_leaves_the_adapters(pool: Pool, line: list[int], query: Any):
    found = revoke(pool, SOURCE, STREAM, Subject(file_id=4), reason="by request")
    assert found.revoked == "by request" and [a.is_withdrawn for a in found.adapters] == [False, False]
    current = adapters.current(pool, STREAM)
    assert current is not None and current.version == line[2]
    assert ledger(query)[4] == ("trained", None) and problems(pool) == []


def test_beginning_anew_rolls_back_and_returns_the_other_rows(pool: Pool, lease: Lease, line: list[int], query: Any):
    revoke(pool, SOURCE, STREAM, Subject(file_id=4), reason="by request", begin_anew=True)
    current = adapters.current(pool, STREAM)
    assert current is not None and current.version == line[0]
    found = ledger(query)
    assert found[4] == ("rejected", "revoked")
    assert [found[n] for n in (5, 7, 8)] == [("returned", None)] * 3
    assert [found[n][0] for n in (1, 2, 3, 6, 9)] == ["trained", "trained", "held_out", "held_out", "held_out"]
    assert problems(pool) == []
    with pytest.raises(DatabaseError, match="withdrawn"):
        adapters.roll_back(pool, STREAM, line[2])
    again = published(pool, lease, parent=line[0])
    assert {n for (n,) in query("select file_id from codelupe.run_rows where run_id = %s", again)} == {5, 7, 8}
    assert problems(pool) == []
    assert [a.version for a in lineage(pool, SOURCE, STREAM, Subject(file_id=5)).adapters] == [line[1], line[2], again]


def test_what_only_withdrawn_adapters_saw_may_be_held_out(pool: Pool, lease: Lease, line: list[int]):
    """File 5 waits again, and the next split holds it out. No remaining adapter was trained on it."""
    revoke(pool, SOURCE, STREAM, Subject(file_id=4), reason="by request", begin_anew=True)
    published(pool, lease, parent=line[0], held_out=(5,))
    assert problems(pool) == []


def test_without_a_clean_ancestor_the_base_remains(pool: Pool, line: list[int], query: Any):
    found = revoke(pool, SOURCE, STREAM, Subject(file_id=1), reason="x", begin_anew=True)
    assert found.clean_ancestor is None and all(a.is_withdrawn for a in found.adapters)
    assert adapters.current(pool, STREAM) is None and problems(pool) == []


def test_a_held_out_text_is_forgotten(pool: Pool, line: list[int], query: Any):
    revoke(pool, SOURCE, STREAM, Subject(file_id=3), reason="x")
    assert query("select file_id from codelupe.held_out order by 1") == [(6,), (9,)]
    assert problems(pool) == []


def test_a_run_that_has_a_revoked_row_is_not_published(pool: Pool, lease: Lease, query: Any):
    fill(pool, 3)
    run_id, files = claim_all(pool, lease, held_out=(3,))
    for state in ("training", "judging"):
        runs.advance(pool, lease, run_id, state)  # type: ignore[arg-type]
    revoke(pool, SOURCE, STREAM, Subject(file_id=2), reason="x")
    outcomes = [Outcome(file_id=n, outcome="held_out" if n == 3 else "trained") for n in files]
    with pytest.raises(RowsRevoked, match="files 2"):
        settling.publish(pool, lease, run_id, outcomes, ADAPTER, {"train": {"tokens_published": 20}})
    assert adapters.current(pool, STREAM) is None


def test_a_run_of_a_withdrawn_parent_is_not_published(pool: Pool, lease: Lease, line: list[int]):
    fill(pool, 2)
    run_id, files = claim_all(pool, lease, parent=line[2])
    for state in ("training", "judging"):
        runs.advance(pool, lease, run_id, state)  # type: ignore[arg-type]
    revoke(pool, SOURCE, STREAM, Subject(file_id=7), reason="x", begin_anew=True)
    outcomes = [Outcome(file_id=n, outcome="trained") for n in files]
    with pytest.raises(ParentMoved):
        settling.publish(pool, lease, run_id, outcomes, ADAPTER, {"train": {"tokens_published": 20}})


def test_revoking_waits_for_a_publication_under_way(pool: Pool, lease: Lease, line: list[int]):
    """Otherwise, a publication that checked for revoked rows just before would finish just after."""
    order: list[str] = []

    def revoke_one() -> None:
        revoke(pool, SOURCE, STREAM, Subject(file_id=1), reason="x")
        order.append("revoked")

    thread = threading.Thread(target=revoke_one)
    with pool.transaction() as cursor:
        fence(cursor, lease)
        thread.start()
        time.sleep(0.5)
        order.append("published")
    thread.join()
    assert order == ["published", "revoked"]


def test_a_claim_refuses_revoked_rows_and_copies_of_their_text(pool: Pool, tmp_path: Any, query: Any):
    world = World(pool, tmp_path / "home")
    world.insert(20)
    copied = CODE + "print('the text that must not be learned')\n"
    world.insert(2, content=copied, prefix="copied")
    revoke(pool, SOURCE, world.recipe.stream, Subject(file_id=5), reason="x")
    revoke(pool, SOURCE, world.recipe.stream, Subject(sha256=content_sha256(copied)), reason="x")
    claimed = world.claim()
    assert claimed.refused == 3
    found = ledger(query)
    assert {n: found[n] for n in (5, 21, 22)} == dict.fromkeys((5, 21, 22), ("rejected", "revoked"))
    assert claimed.run_id is not None
    assert not {5, 21, 22} & {row.file_id for row in read_rows(world.home.run(claimed.run_id).rows)}


def test_a_run_whose_claim_refused_a_revoked_row_is_published(pool: Pool, tmp_path: Any, query: Any):
    world = World(pool, tmp_path / "home")
    world.insert(20)
    revoke(pool, SOURCE, world.recipe.stream, Subject(file_id=5), reason="x")
    publish_all(world)
    assert adapters.current(pool, world.recipe.stream) is not None
    assert ledger(query)[5] == ("rejected", "revoked")


def test_a_stream_without_runs_has_nothing_to_revoke(pool: Pool, lease: Lease):
    fill(pool, 1)
    for subject in (Subject(file_id=1), Subject(sha256="a" * 64)):
        with pytest.raises(DatabaseError, match="no stream misspelled"):
            revoke(pool, SOURCE, "misspelled", subject, reason="x")
