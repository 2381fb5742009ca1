"""Another text under an id that is settled is a new version of the row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from world import ADAPTER, ELIGIBLE, STREAM, Outcome, claim_all, fill, look_around

from db import chunks, revocations, runs, settling
from db.audit import audit
from db.lease import Lease
from db.pool import Pool
from db.revocations import Subject
from db.source import Source, claim

Query = Callable[..., list[tuple[Any, ...]]]
SOURCE = Source()


def text(number: int) -> str:
    return f"def other{number}(value):\n" + f"    return value * {number}\n" * 8


def publish(pool: Pool, lease: Lease, held_out: tuple[int, ...] = (), *, rejected: tuple[int, ...] = ()) -> int:
    """Claim everything, and publish a run that trained on it."""
    run = runs.history(pool, STREAM, limit=50)
    parent = max((r.run_id for r in run if r.state == "published"), default=None)
    run_id, files = claim_all(pool, lease, held_out=held_out, parent=parent)
    for state in ("training", "judging"):
        runs.advance(pool, lease, run_id, state)
    roles = {**dict.fromkeys(files, "trained"), **dict.fromkeys(rejected, "rejected")}
    with pool.transaction() as cursor:
        cursor.execute("select file_id from codelupe.run_rows where run_id = %s and role = 'held_out'", [run_id])
        roles |= {file_id: "held_out" for (file_id,) in cursor.fetchall()}
    outcomes = [
        Outcome(file_id=f, outcome=o, reason="odd" if o == "rejected" else None, tokens=10 if o == "trained" else 0)
        for f, o in roles.items()
    ]
    tokens = sum(o.tokens for o in outcomes)
    settling.publish(pool, lease, run_id, outcomes, ADAPTER, {"train": {"tokens_published": tokens}})
    return run_id


def standing(query: Query) -> dict[int, str]:
    return dict(query("select file_id, disposition from codelupe.ledger order by 1"))


def trained_texts(query: Query) -> list[tuple[int, int]]:
    return query("select run_id, file_id from codelupe.run_rows where outcome = 'trained' order by 1, 2")


CHANGES = {
    "upsert": "insert into code_files (id, content, language, quality_score) overriding system value"
    " values (%(id)s, %(text)s, 'Python', 90) on conflict (id) do update set content = excluded.content",
    "update": "update code_files set content = %(text)s where id = %(id)s",
    "delete and insert": "delete from code_files where id = %(id)s; insert into code_files"
    " (id, content, language, quality_score) overriding system value values (%(id)s, %(text)s, 'Python', 90)",
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("same_length", [True, False])
def test_another_text_is_trained_as_a_new_version(
    pool: Pool, lease: Lease, query: Query, change: str, same_length: bool
) -> None:
    fill(pool, 3)
    look_around(pool, lease)
    first = publish(pool, lease)
    assert look_around(pool, lease).rows == 0
    ((old,),) = query("select content from code_files where id = 2")
    new = old.replace("x = 1", "x = 2") if same_length else text(2)
    with pool.transaction() as cursor:
        cursor.execute(CHANGES[change], {"id": 2, "text": new})
    found = look_around(pool, lease)
    assert (found.rows, found.changed) == (1, 1)
    assert look_around(pool, lease).changed == 0
    before = audit(pool, SOURCE, ELIGIBLE, STREAM)
    assert before.problems == [] and before.pending == 1 and before.superseded == {"trained": 1}
    second = publish(pool, lease)
    assert trained_texts(query) == [(first, 1), (first, 2), (first, 3), (second, 2)]
    after = audit(pool, SOURCE, ELIGIBLE, STREAM)
    assert after.problems == [] and after.settled == {"trained": 3} and after.trained_rows == 4


def test_a_table_that_begins_anew_is_trained_anew(pool: Pool, lease: Lease, query: Query) -> None:
    fill(pool, 14)
    look_around(pool, lease)
    publish(pool, lease, held_out=(3,))
    query("truncate code_files restart identity")
    query(
        "insert into code_files (repository, path, content, language, quality_score)"
        " select 'new', n || '.py', repeat('y = ' || n || E'\n', 30), 'Python', 90 from generate_series(1, 14) n"
    )
    found = look_around(pool, lease)
    assert (found.rows, found.changed) == (14, 14)
    again = publish(pool, lease)
    assert query("select role, count(*) from codelupe.run_rows where run_id = %s group by 1", again) == [("train", 14)]
    after = audit(pool, SOURCE, ELIGIBLE, STREAM)
    assert after.problems == [] and after.superseded == {"held_out": 1, "trained": 13}


@pytest.mark.parametrize("rows", [30_000])
def test_an_emptied_table_is_noticed_at_the_next_poll(pool: Pool, lease: Lease, query: Query, rows: int) -> None:
    """Its ids begin anew below the newest range, which is the only one that a poll reads."""
    query(
        "insert into code_files (content, language, quality_score)"
        " select repeat(md5(n::text), 2), 'Python', 10 from generate_series(1, %s) n",
        rows,
    )
    look_around(pool, lease)
    assert query("select count(*) > 1 from codelupe.chunks") == [(True,)]
    query("truncate code_files restart identity")
    fill(pool, 5)
    assert chunks.poll(pool, lease, SOURCE, ELIGIBLE).rows == 5


def test_the_same_text_is_not_trained_again(pool: Pool, lease: Lease, query: Query) -> None:
    """A restored dump writes every row anew. Its texts are compared once, and then their marks are known."""
    fill(pool, 5)
    look_around(pool, lease)
    publish(pool, lease)
    marks = query("select mark from codelupe.ledger order by file_id")
    query("create table copied as select * from code_files")
    query("truncate code_files")
    query("insert into code_files overriding system value select * from copied")
    query("update code_files set quality_score = 95 where id = 1")
    found = look_around(pool, lease)
    assert (found.rows, found.changed) == (0, 0)
    assert query("select mark from codelupe.ledger order by file_id") != marks
    assert query("select version from codelupe.ledger") == [(0,)] * 5


def test_a_new_version_of_a_held_out_file_is_held_out(pool: Pool, lease: Lease, query: Query) -> None:
    fill(pool, 4)
    look_around(pool, lease)
    publish(pool, lease, held_out=(2,))
    query("update code_files set content = %s where id = 2", text(2))
    assert look_around(pool, lease).rows == 1
    with claim(pool, lease, SOURCE, ELIGIBLE, limit=9, parent_version=None, seed=1) as claimed:
        (row,) = claimed.rows()
        assert row.held_out and row.version == 1
        with pytest.raises(ValueError, match="held out"):
            claimed.keep(row, "train")
        claimed.keep(row, "held_out")
    assert query("select version, content from codelupe.held_out") == [(1, text(2))]
    assert audit(pool, SOURCE, ELIGIBLE, STREAM).problems == []


def test_another_file_under_the_id_of_a_held_out_one_is_not_held_out(pool: Pool, lease: Lease, query: Query) -> None:
    fill(pool, 4)
    look_around(pool, lease)
    publish(pool, lease, held_out=(2,))
    query("update code_files set content = %s, path = 'another.py' where id = 2", text(2))
    look_around(pool, lease)
    with claim(pool, lease, SOURCE, ELIGIBLE, limit=9, parent_version=None, seed=1) as claimed:
        (row,) = claimed.rows()
        assert not row.held_out
        claimed.keep(row, "train")
        assert [(place.path) for place in claimed.held_out_places()] == ["src/file2.py"]
        assert list(claimed.earlier_held_out(1, 10_000)) == []  # its text is not measured any more
    assert audit(pool, SOURCE, ELIGIBLE, STREAM).problems == []


@pytest.mark.parametrize("disposition", ["rejected", "quarantined"])
def test_a_new_text_gets_another_chance(pool: Pool, lease: Lease, query: Query, disposition: str) -> None:
    fill(pool, 3)
    look_around(pool, lease)
    publish(pool, lease, rejected=(2,))
    query("update codelupe.ledger set disposition = %s, attempts = 2 where file_id = 2", disposition)
    query("update code_files set content = %s where id = 2", text(2))
    assert look_around(pool, lease).rows == 1
    assert query("select attempts, reason from codelupe.ledger where file_id = 2") == [(0, None)]
    publish(pool, lease)
    assert standing(query) == {1: "trained", 2: "trained", 3: "trained"}
    assert audit(pool, SOURCE, ELIGIBLE, STREAM).superseded == {disposition: 1}


def test_a_text_that_changes_during_its_run_is_found_after_it(pool: Pool, lease: Lease, query: Query) -> None:
    fill(pool, 3)
    run_id, files = claim_all(pool, lease)
    query("update code_files set content = %s where id = 2", text(2))
    assert look_around(pool, lease).changed == 0
    for state in ("training", "judging"):
        runs.advance(pool, lease, run_id, state)
    outcomes = [Outcome(file_id=file_id, outcome="trained") for file_id in files]
    settling.publish(pool, lease, run_id, outcomes, ADAPTER, {"train": {"tokens_published": 30}})
    assert look_around(pool, lease).changed == 1
    assert audit(pool, SOURCE, ELIGIBLE, STREAM).problems == []


def test_an_ineligible_new_text_waits_as_such(pool: Pool, lease: Lease, query: Query) -> None:
    fill(pool, 3)
    look_around(pool, lease)
    publish(pool, lease)
    query("update code_files set content = 'x' where id = 2")
    found = look_around(pool, lease)
    assert (found.rows, dict(found.ineligible)) == (0, {"too_short": 1})
    after = audit(pool, SOURCE, ELIGIBLE, STREAM)
    assert after.problems == [] and after.ineligible == {"too_short": 1} and after.settled == {"trained": 2}


def test_the_audit_sees_a_change_before_the_service(pool: Pool, lease: Lease, query: Query) -> None:
    fill(pool, 3)
    look_around(pool, lease)
    publish(pool, lease)
    query("update code_files set content = %s where id = 2", text(2))
    found = audit(pool, SOURCE, ELIGIBLE, STREAM)
    assert (found.problems, found.changed, found.pending, found.settled) == ([], 1, 1, {"trained": 2})


VIEWS = {
    "length": ("create view files as select id, content, language, quality_score from code_files", 3),
    "updated_at": (
        "create view files as select id, content, language, quality_score, created_at as updated_at from code_files",
        1,
    ),
}


@pytest.mark.parametrize("kind", VIEWS)
def test_a_view_is_compared_in_turn(
    pool: Pool, lease: Lease, query: Query, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A view has no xmin. A text of the same length is found by its hash, or at once by `updated_at`."""
    definition, most = VIEWS[kind]
    monkeypatch.setattr("db.versions.COMPARED_ROWS", 2)
    query(definition)
    source = Source(table="files")
    fill(pool, 6)
    chunks.poll(pool, lease, source, ELIGIBLE)
    run_id, files = claim_all(pool, lease, source=source)
    for state in ("training", "judging"):
        runs.advance(pool, lease, run_id, state)
    outcomes = [Outcome(file_id=file_id, outcome="trained") for file_id in files]
    settling.publish(pool, lease, run_id, outcomes, ADAPTER, {"train": {"tokens_published": 60}})
    query("update code_files set content = replace(content, 'x = 1', 'x = 2'), created_at = now() where id = 6")
    changed = [chunks.poll(pool, lease, source, ELIGIBLE).changed for _ in range(4)]
    assert changed == [int(look + 1 == most) for look in range(4)]
    query("update code_files set content = %s where id = 1", text(1))  # another length is seen at once
    assert chunks.poll(pool, lease, source, ELIGIBLE).changed == 1
    assert audit(pool, source, ELIGIBLE, STREAM).problems == []


def test_rows_of_an_earlier_release_are_compared_a_part_at_a_time(
    pool: Pool, lease: Lease, query: Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have no mark. The range is due again until all have one."""
    monkeypatch.setattr("db.versions.COMPARED_ROWS", 4)
    fill(pool, 10)
    look_around(pool, lease)
    publish(pool, lease)
    query("update codelupe.ledger set mark = null")
    query("update code_files set content = %s where id = 9", text(9))
    for left in (6, 2, 0):
        assert chunks.poll(pool, lease, SOURCE, ELIGIBLE).changed == int(left == 0)
        assert query("select count(*) from codelupe.ledger where mark is null and version = 0") == [(left,)]


def test_texts_in_an_older_range_are_compared_without_waiting_for_the_next_sweep(
    pool: Pool, lease: Lease, query: Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("db.chunks.WINDOW_ROWS", 2)
    monkeypatch.setattr("db.versions.COMPARED_ROWS", 2)
    fill(pool, 12)
    look_around(pool, lease)
    publish(pool, lease)
    query("update code_files set content = replace(content, 'x = 1', 'x = 2') where id < 8")
    query("update codelupe.chunks set due_at = '-infinity'")
    look_around(pool, lease)
    assert query("select count(*) from codelupe.ledger where version = 1") == [(7,)]


@pytest.mark.parametrize("with_schema", [True, False])
def test_marks_of_other_tables(pool: Pool, lease: Lease, query: Query, with_schema: bool) -> None:
    """A partitioned table has xmin as well."""
    name = "public.parts" if with_schema else "parts"
    query("create table parts (like code_files including all) partition by range (id)")
    query("create table parts1 partition of parts for values from (minvalue) to (10)")
    query("create table parts2 partition of parts for values from (10) to (maxvalue)")
    query("insert into parts (id, content, language, quality_score) values (1, %s, 'c', 90), (11, %s, 'c', 90)",
          text(1), text(2))  # fmt: skip
    source = Source(table=name)
    look_around(pool, lease, source=source)
    run_id, files = claim_all(pool, lease, source=source)
    assert files == [1, 11]
    for state in ("training", "judging"):
        runs.advance(pool, lease, run_id, state)
    outcomes = [Outcome(file_id=file_id, outcome="trained") for file_id in files]
    settling.publish(pool, lease, run_id, outcomes, ADAPTER, {"train": {"tokens_published": 20}})
    query("update parts set content = replace(content, '2', '3') where id = 11")
    assert look_around(pool, lease, source=source).changed == 1


def test_withdrawn_adapters_take_earlier_texts_with_them(pool: Pool, lease: Lease, query: Query) -> None:
    fill(pool, 3)
    look_around(pool, lease)
    publish(pool, lease)
    query("update code_files set content = %s where id = 2", text(2))
    look_around(pool, lease)
    revocations.revoke(pool, SOURCE, STREAM, Subject(file_id=1), reason="asked", begin_anew=True)
    found = audit(pool, SOURCE, ELIGIBLE, STREAM)
    assert found.problems == [] and found.superseded == {"withdrawn": 1}


LIES = {
    "no look finds it: files 2": (
        "update code_files set content = repeat('z', 60) where id = 2",
        "update codelupe.ledger l set mark = (s.xmin::text::bigint << 32) | octet_length(content)"
        " from code_files s where s.id = 2 and l.file_id = 2",
    ),
    "that are not recorded, or not in the ledger: files 3": ("delete from codelupe.superseded where file_id = 3",),
    "not recorded, or not in the ledger: files 1": ("update codelupe.ledger set version = 1 where file_id = 1",),
    "trained in the ledger, but not in a published run: files 3": (
        "insert into codelupe.runs (stream, state, seed, epoch, ended_at) values ('qwen', 'failed', 1, 1, now())",
        "update codelupe.superseded set run_id = (select max(run_id) from codelupe.runs) where file_id = 3",
    ),
    "in a published run, but not in the ledger: files 3": (
        "update codelupe.superseded set disposition = 'rejected' where file_id = 3",
    ),
    "held-out files were trained on: files 3": (
        "insert into codelupe.held_out (stream, file_id, run_id, language, content, content_sha256, repository, path)"
        " select 'qwen', 3, 1, 'c', 'c', '', repository, path from code_files where id = 3",
    ),
    "in more than one published run: files 3": (
        "alter table codelupe.run_rows disable trigger user",
        "update codelupe.run_rows set content_sha256 = (select content_sha256 from codelupe.run_rows"
        " where file_id = 3 and run_id = 1) where file_id = 3 and run_id = 2",
    ),
    "neither trained, claimed nor held out: files 3": (
        "insert into codelupe.fingerprints values ('qwen', 3, 'x', 'x', '{}', 7)",
    ),
}


@pytest.mark.parametrize("said", LIES)
def test_the_audit_finds(pool: Pool, lease: Lease, query: Query, said: str) -> None:
    fill(pool, 4)
    look_around(pool, lease)
    publish(pool, lease)
    query("update code_files set content = %s where id = 3", text(3))
    look_around(pool, lease)
    publish(pool, lease)
    assert audit(pool, SOURCE, ELIGIBLE, STREAM).problems == []
    for statement in LIES[said]:
        query(statement)
    problems = audit(pool, SOURCE, ELIGIBLE, STREAM).problems
    assert any(said in problem for problem in problems), problems


def test_texts_that_vanish_are_compared_in_one_look(pool: Pool, lease: Lease, query: Query) -> None:
    query("alter table code_files alter content drop not null")
    fill(pool, 6)
    look_around(pool, lease)
    publish(pool, lease)
    query("update code_files set content = null")
    assert chunks.poll(pool, lease, SOURCE, ELIGIBLE).changed == 6
    assert audit(pool, SOURCE, ELIGIBLE, STREAM).ineligible == {"no_content": 6}


def test_new_texts_do_not_hide_what_was_trained(pool: Pool, lease: Lease, query: Query) -> None:
    fill(pool, 3)
    look_around(pool, lease)
    publish(pool, lease)
    query("update code_files set content = content || '# more'")
    assert look_around(pool, lease).changed == 3
    found = runs.totals(pool, STREAM)
    assert (found.trained_rows, found.last_trained_id) == (3, 3)
