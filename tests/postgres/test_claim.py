"""Claims take every row once, lose none and leave none."""

from __future__ import annotations

import random
import re
import threading
import time
from typing import Any

import psycopg2
import pytest
from psycopg2 import sql
from world import (
    ADAPTER,
    ELIGIBLE,
    STREAM,
    Outcome,
    claim_all,
    execute_outside,
    fill,
    in_database,
    look_around,
    new_file,
)

from db import claim as source_claim
from db import migrate, runs, settling
from db.audit import audit
from db.chunks import count
from db.errors import DatabaseError, LeaseLost, Misconfigured
from db.files import NewFile, insert_files, known_paths
from db.lease import Lease, acquire, renew
from db.pool import Pool
from db.source import (
    Source,
    check_source,
    claim,
    is_empty,
)
from db.streams import Binding, bind, request_training, training_requested

SOURCE = Source()


def test_claims_each_row_once(pool: Pool, lease: Lease, query: Any) -> None:
    fill(pool, 7)
    run_id, files = claim_all(pool, lease, held_out=(2,), limit=5)
    assert files == [1, 2, 3, 4, 5]
    assert query("select file_id, disposition, run_id from codelupe.ledger order by 1") == [
        (number, "claimed", run_id) for number in files
    ]
    assert query("select file_id, role from codelupe.run_rows where role = 'held_out'") == [(2, "held_out")]
    assert query("select file_id, language from codelupe.held_out") == [(2, "python")]
    settling.give_back(pool, lease, run_id, state="returned", reason="test")
    second, again = claim_all(pool, lease, limit=100)
    assert second > run_id
    assert again == [1, 2, 3, 4, 5, 6, 7]
    assert query("select role from codelupe.run_rows where run_id = %s and file_id = 2", second) == [("held_out",)]


def test_a_second_claim_while_a_run_is_live_fails(pool: Pool, lease: Lease) -> None:
    fill(pool, 2)
    claim_all(pool, lease, limit=1)
    with pytest.raises(DatabaseError, match="runs_one_live"):
        claim_all(pool, lease)


@pytest.mark.parametrize("how", ["error", "cancel"])
def test_an_undone_claim_leaves_nothing(pool: Pool, lease: Lease, query: Any, how: str) -> None:
    fill(pool, 3)
    request_training(pool, STREAM)

    def attempt() -> None:
        with claim(pool, lease, SOURCE, ELIGIBLE, limit=10, parent_version=None, seed=1) as claimed:
            for row in claimed.rows():
                claimed.keep(row, "held_out")
            claimed.flush()
            if how == "error":
                raise KeyError("the caller's own")
            claimed.cancel()

    if how == "error":
        with pytest.raises(KeyError):
            attempt()
    else:
        attempt()
    for table in ("runs", "ledger", "run_rows", "held_out"):
        assert query(f"select count(*) from codelupe.{table}") == [(0,)]
    assert training_requested(pool, STREAM)
    assert pool.stats().in_use == 0
    claim_all(pool, lease)
    assert not training_requested(pool, STREAM)


def test_a_renewal_during_a_claim_neither_waits_nor_breaks_it(pool: Pool, lease: Lease) -> None:
    fill(pool, 3)
    with claim(pool, lease, SOURCE, ELIGIBLE, limit=10, parent_version=None, seed=1) as claimed:
        rows = claimed.rows()
        first = next(rows)
        started = time.monotonic()
        renew(pool, lease, 600)
        request_training(pool, STREAM)
        assert time.monotonic() - started < 2
        claimed.keep(first, "train")
        for row in rows:
            claimed.keep(row, "train")
    assert runs.live(pool, STREAM) is not None
    assert training_requested(pool, STREAM)  # requested after the claim began, so it is for the next one


def test_a_takeover_during_a_claim_undoes_it(pool: Pool, lease: Lease, query: Any) -> None:
    fill(pool, 3)
    with pytest.raises(LeaseLost):  # noqa: SIM117
        with claim(pool, lease, SOURCE, ELIGIBLE, limit=10, parent_version=None, seed=1) as claimed:
            for row in claimed.rows():
                claimed.keep(row, "train")
            query("update codelupe.leases set expires_at = now() - interval '1 s'")
            assert acquire(pool, STREAM, "another", 60) is not None
    assert runs.live(pool, STREAM) is None
    assert query("select count(*) from codelupe.ledger") == [(0,)]


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("cancelled", [False, True])
def test_a_half_read_claim_leaves_the_connection_usable(database_url: str, lease: Lease, cancelled: bool) -> None:
    pool = Pool(database_url, min_connections=5)
    fill(pool, 1200)
    with claim(pool, lease, SOURCE, ELIGIBLE, limit=1200, parent_version=None, seed=1) as claimed:
        rows = claimed.rows()
        row = next(rows)
        claimed.keep(row, "train")
        if cancelled:
            claimed.cancel()
    rows.close()
    with pool.transaction() as one, pool.transaction() as two:
        for cursor in (one, two):
            cursor.execute("select count(*) from codelupe.ledger")
            assert cursor.fetchone() == (0 if cancelled else 1,)
    pool.close()


def test_a_settled_row_cannot_be_claimed(pool: Pool, lease: Lease, query: Any) -> None:
    fill(pool, 1)
    with claim(pool, lease, SOURCE, ELIGIBLE, limit=10, parent_version=None, seed=1) as claimed:
        (row,) = claimed.rows()
        claimed.reject(row, "duplicate")
        run_id = claimed.run_id
    settling.give_back(pool, lease, run_id, state="returned", reason="test")
    with pytest.raises(DatabaseError, match="could claim 0 of 1 rows"):  # noqa: SIM117
        with claim(pool, lease, SOURCE, ELIGIBLE, limit=10, parent_version=None, seed=1) as claimed:
            assert list(claimed.rows()) == []
            claimed.keep(row, "train")
    assert query("select disposition from codelupe.ledger") == [("rejected",)]


def test_a_claim_reads_one_snapshot(pool: Pool, lease: Lease, query: Any) -> None:
    fill(pool, 3)
    with claim(pool, lease, SOURCE, ELIGIBLE, limit=10, parent_version=None, seed=1) as claimed:
        query("update code_files set content = repeat('y', 100)")
        query("delete from code_files where id = 2")
        contents = [row.content for row in claimed.rows()]
        claimed.cancel()
    assert contents == [new_file(number).content for number in (1, 2, 3)]


def test_a_row_that_was_held_out_is_never_kept_for_training(pool: Pool, lease: Lease) -> None:
    fill(pool, 2)
    run_id, _ = claim_all(pool, lease, held_out=(1,))
    settling.give_back(pool, lease, run_id, state="failed", reason="test")
    with claim(pool, lease, SOURCE, ELIGIBLE, limit=10, parent_version=None, seed=1) as claimed:
        row = next(iter(claimed.rows()))
        assert row.held_out
        with pytest.raises(ValueError, match="held out"):
            claimed.keep(row, "train")
        claimed.cancel()


def test_rejecting_settles_at_once(pool: Pool, lease: Lease, query: Any) -> None:
    fill(pool, 2)
    with claim(pool, lease, SOURCE, ELIGIBLE, limit=10, parent_version=None, seed=1) as claimed:
        for row in claimed.rows():
            claimed.reject(row, "duplicate")
    assert (
        query("select disposition, reason, settled_at is not null from codelupe.ledger")
        == [("rejected", "duplicate", True)] * 2
    )
    assert query("select outcome from codelupe.run_rows") == [("rejected",)] * 2
    assert look_around(pool, lease).rows == 0


def test_returned_rows_wait_for_their_time(pool: Pool, lease: Lease, query: Any) -> None:
    fill(pool, 2)
    run_id, _ = claim_all(pool, lease)
    settling.give_back(pool, lease, run_id, state="returned", reason="test", delay_seconds=3600)
    assert count(pool, SOURCE, ELIGIBLE, STREAM) == look_around(pool, lease).rows == 0
    query("update codelupe.ledger set not_before = now() - interval '1 s' where file_id = 2")
    assert count(pool, SOURCE, ELIGIBLE, STREAM) == look_around(pool, lease).rows == 1
    assert claim_all(pool, lease)[1] == [2]


def test_out_of_order_commits_lose_nothing(database_url: str, pool: Pool, lease: Lease) -> None:
    """Eight writers take their ids early and commit late, during claims. The first one commits last."""
    writers, files_each = 8, 60
    done = threading.Event()
    slowest = psycopg2.connect(database_url)
    with slowest.cursor() as cursor:
        cursor.execute("insert into code_files (content, quality_score) values (repeat('s', 60), 80)")

    def write(number: int) -> None:
        chance = random.Random(number)
        connection = psycopg2.connect(database_url)
        for position in range(files_each // 4):
            with connection, connection.cursor() as cursor:
                for part in range(4):
                    cursor.execute(
                        "insert into code_files (language, content, quality_score) values ('c', %s, 80)",
                        [f"{number} {position} {part} ".ljust(60, "x")],
                    )
                time.sleep(chance.random() * 0.03)
        connection.close()

    threads = [threading.Thread(target=write, args=(number,)) for number in range(writers)]
    for thread in threads:
        thread.start()
    threading.Thread(target=lambda: ([thread.join() for thread in threads], done.set())).start()
    claimed: list[int] = []
    while True:
        last = done.is_set()
        with claim(pool, lease, SOURCE, ELIGIBLE, limit=40, parent_version=None, seed=1) as batch:
            rows = list(batch.rows())
            for row in rows:
                batch.reject(row, "counted")
        claimed += [row.file_id for row in rows]
        run = runs.live(pool, STREAM)
        assert run is not None
        settling.give_back(pool, lease, run.run_id, state="returned", reason="test")
        if last and not rows:
            if not slowest.closed:
                slowest.commit()
                slowest.close()
                continue
            break
    assert len(claimed) == len(set(claimed)) == writers * files_each + 1
    assert claimed[-1] == 1


def test_earlier_held_out_texts_come_in_a_seeded_order(pool: Pool, lease: Lease) -> None:
    fill(pool, 40)
    run_id, files = claim_all(pool, lease, held_out=tuple(range(1, 41)))
    runs.advance(pool, lease, run_id, "training")
    runs.advance(pool, lease, run_id, "judging")
    outcomes = [Outcome(file_id=number, outcome="held_out") for number in files]
    settling.publish(pool, lease, run_id, outcomes, ADAPTER, {"train": {"tokens_published": 0}})
    with claim(pool, lease, SOURCE, ELIGIBLE, limit=1, parent_version=run_id, seed=1) as claimed:
        first = [row.file_id for row in claimed.earlier_held_out(7, 10**6)]
        again = [row.file_id for row in claimed.earlier_held_out(7, 10**6)]
        other = [row.file_id for row in claimed.earlier_held_out(8, 10**6)]
        few = list(claimed.earlier_held_out(7, 500))
        one = list(claimed.earlier_held_out(7, 1))
        claimed.cancel()
    assert first == again
    assert sorted(first) == sorted(other) == list(range(1, 41))
    assert first != other
    assert [row.file_id for row in few] == first[: len(few)]
    assert sum(len(row.content) for row in few) <= 500
    assert len(one) == 1


def test_long_held_out_texts_are_not_in_memory_together(
    pool: Pool, lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_claim, "BATCH_CHARS", 3 * ELIGIBLE.max_chars)
    fill(pool, 12, content="x" * ELIGIBLE.max_chars)
    written: list[int] = []
    write = source_claim.Claim._write

    def noted(self: Any, name: str, records: list[Any]) -> None:
        written.extend([len(records)] * (name == "held_out_insert"))
        write(self, name, records)

    monkeypatch.setattr(source_claim.Claim, "_write", noted)
    run_id, files = claim_all(pool, lease, held_out=tuple(range(1, 13)))
    assert sum(written) == 12 and max(written) == 3
    runs.advance(pool, lease, run_id, "training")
    runs.advance(pool, lease, run_id, "judging")
    outcomes = [Outcome(file_id=number, outcome="held_out") for number in files]
    settling.publish(pool, lease, run_id, outcomes, ADAPTER, {"train": {"tokens_published": 0}})
    with claim(pool, lease, SOURCE, ELIGIBLE, limit=1, parent_version=run_id, seed=1) as claimed:
        texts = claimed.earlier_held_out(7, 10**9)
        next(texts)
        assert claimed.cursor.rowcount == 3
        assert len(list(texts)) == 11
        claimed.cancel()


# --- what may be trained on ---------------------------------------------------------------------------------


def test_reject_reasons(pool: Pool, lease: Lease, monkeypatch: pytest.MonkeyPatch) -> None:
    cases: dict[str, dict[str, Any]] = {
        "no_score": {"quality_score": None},
        "low_score": {"quality_score": 69.9},
        "too_short": {"content": "é" * 49},
        "too_long": {"content": "x" * 8001},
        "fine, four bytes each": {"content": "😀" * 8000},
        "fine, least": {"content": "é" * 50},
        "fine, most": {"content": "x" * 8000},
        "fine, threshold": {"quality_score": 70.0},
    }
    insert_files(pool, [new_file(number, **changes) for number, changes in enumerate(cases.values())])
    insert_files(pool, [new_file(99, quality_score=float("nan"))])
    insert_files(pool, [new_file(100, content="😀" * 8001)])
    monkeypatch.setattr("db.chunks.WINDOW_ROWS", 2)
    monkeypatch.setattr("db.chunks.CHUNK_ROWS", 3)
    found = look_around(pool, lease)
    assert found.rows == count(pool, SOURCE, ELIGIBLE, STREAM) == 4
    assert found.ineligible == {"no_score": 2, "low_score": 1, "too_short": 1, "too_long": 2}
    assert found.oldest_age_seconds is not None and 0 <= found.oldest_age_seconds < 60
    assert claim_all(pool, lease)[1] == [5, 6, 7, 8]


def test_a_huge_row_is_rejected_without_being_unpacked(pool: Pool, lease: Lease, query: Any) -> None:
    """200 MB of text take 2.3 MB on disk. Checking the length must not unpack them."""
    fill(pool, 1)
    query("insert into code_files (content, quality_score) values (repeat('abcdefghij', 20000000), 90)")
    started = time.monotonic()
    char_length = query("select char_length(content) from code_files where id = 2")
    unpacked = time.monotonic() - started
    assert char_length == [(200_000_000,)]
    started = time.monotonic()
    found = look_around(pool, lease)
    assert (found.rows, found.ineligible) == (1, {"too_long": 1})
    assert claim_all(pool, lease)[1] == [1]
    assert time.monotonic() - started < unpacked


def test_null_language_is_text(pool: Pool, lease: Lease) -> None:
    insert_files(pool, [new_file(1, language=None), new_file(2, language="  Rust ")])
    with claim(pool, lease, SOURCE, ELIGIBLE, limit=10, parent_version=None, seed=1) as claimed:
        assert [row.language for row in claimed.rows()] == ["text", "rust"]
        claimed.cancel()


def test_bytes_that_are_not_utf8_are_rejected(postgres_url: str) -> None:
    name = "sql_ascii"
    execute_outside(
        postgres_url,
        sql.SQL("create database {} encoding 'SQL_ASCII' template template0").format(sql.Identifier(name)),
    )
    pool = Pool(in_database(postgres_url, name))
    migrate.apply(pool)
    bind(pool, STREAM, Binding(source="code_files", base_model="m", base_revision="r", lora={}))
    lease = acquire(pool, STREAM, "tests", 600)
    assert lease is not None
    insert_files(pool, [new_file(1, content="naïve 😀 " * 20, metadata={"author": "Zoë"})])
    with pool.transaction() as cursor:
        cursor.execute("set local client_encoding = 'SQL_ASCII'")
        cursor.execute(
            "insert into code_files (path, content, quality_score) values "
            r"('a', E'caf\xe9' || repeat('x', 60), 80), (E'\xe9', repeat('x', 60), 80)"
        )
    with claim(pool, lease, SOURCE, ELIGIBLE, limit=10, parent_version=None, seed=1) as claimed:
        kept = list(claimed.rows())
        for row in kept:
            claimed.keep(row, "held_out")
    assert [row.content for row in kept] == ["naïve 😀 " * 20]
    with pool.transaction() as cursor:
        cursor.execute("select metadata from codelupe.held_out")
        assert cursor.fetchall() == [({"author": "Zoë"},)]
    assert known_paths(pool, "owner/repo1") == {"src/file1.py"}
    with pool.transaction() as cursor:
        cursor.execute("select file_id, disposition, reason from codelupe.ledger order by 1")
        assert cursor.fetchall() == [
            (1, "claimed", None),
            (2, "rejected", "not_utf8"),
            (3, "rejected", "not_utf8"),
        ]
    pool.close()


def test_bytes_without_a_character_in_the_databases_encoding_are_rejected(postgres_url: str) -> None:
    """Such a database may hold bytes that cannot be converted to UTF-8. They must not stop the other rows."""
    made = "create database {} encoding 'WIN1252' lc_collate 'C' lc_ctype 'C' template template0"
    execute_outside(postgres_url, sql.SQL(made).format(sql.Identifier("win1252")))
    pool = Pool(in_database(postgres_url, "win1252"))
    migrate.apply(pool)
    bind(pool, STREAM, Binding(source="code_files", base_model="m", base_revision="r", lora={}))
    lease = acquire(pool, STREAM, "tests", 600)
    assert lease is not None
    insert_files(pool, [new_file(1, content="naïve € " * 20)])
    with pool.transaction() as cursor:
        cursor.execute("set local client_encoding = 'WIN1252'")
        cursor.execute(
            "insert into code_files (path, content, quality_score)"
            r" values ('a', E'x\x81' || repeat('x', 60), 80), (E'\x81', repeat('x', 60), 80)"
        )
    with claim(pool, lease, SOURCE, ELIGIBLE, limit=10, parent_version=None, seed=1) as claimed:
        kept = list(claimed.rows())
        for row in kept:
            claimed.keep(row, "train")
        claimed.flush()
    assert [row.content for row in kept] == ["naïve € " * 20]
    found = audit(pool, SOURCE, ELIGIBLE, STREAM)
    assert (found.settled, found.claimed, found.problems) == ({"rejected:not_utf8": 2}, 1, [])
    pool.close()


# --- other tables -------------------------------------------------------------------------------------------


def test_a_view_with_odd_names(pool: Pool, lease: Lease, query: Any) -> None:
    fill(pool, 2)
    query('create schema "Odd.Schema"')
    query(
        'create view "Odd.Schema"."My%""View""" as '
        'select id as "ID", content as "The, Body", language as "select",'
        ' quality_score::numeric as "100%" from code_files'
    )
    source = Source.parse('"Odd.Schema"."My%""View"""', 'id=ID,content="The, Body",language=select,quality_score=100%')
    checked = check_source(pool, source)
    assert checked.absent == {"repository", "path", "license", "metadata", "created_at", "updated_at", "phase"}
    assert not is_empty(pool, source)
    for one in (source, checked):
        found = look_around(pool, lease, source=one)
        assert (found.rows, found.oldest_age_seconds) == (2, None)
        assert count(pool, one, ELIGIBLE, STREAM) == 2
    with claim(pool, lease, checked, ELIGIBLE, limit=10, parent_version=None, seed=1) as claimed:
        rows = list(claimed.rows())
        claimed.cancel()
    assert [(row.file_id, row.repository, row.path, row.language) for row in rows] == [
        (1, None, None, "python"),
        (2, None, None, "python"),
    ]
    assert audit(pool, source, ELIGIBLE, STREAM).pending == 2


def test_a_view_that_repeats_an_id(pool: Pool, lease: Lease, query: Any) -> None:
    fill(pool, 2)
    query("create view twice as select * from code_files union all select * from code_files")
    with pytest.raises(Misconfigured, match="id 1 twice"):
        claim_all(pool, lease, source=Source(table="twice"))


def test_check_source_names_what_is_missing(pool: Pool, query: Any) -> None:
    query("create table files (id uuid, body text, language text, quality_score text)")
    with pytest.raises(Misconfigured) as caught:
        check_source(pool, Source.parse("files", "content=bodi"))
    text = str(caught.value)
    assert "column bodi (for content) is missing" in text
    assert "id) must be an integer type, not uuid" in text
    assert "quality_score) must be a number" in text
    with pytest.raises(Misconfigured, match=r"there is public\.files"):
        check_source(pool, Source(table="Files"))


@pytest.mark.parametrize(
    "column", ["id uuid default gen_random_uuid()", "id text", "id numeric", "key varchar(9)", '"Id" bytea']
)
def test_a_table_without_a_number_for_each_row_gets_one(pool: Pool, query: Any, column: str) -> None:
    query(f'create table "My files" ({column}, body text, language text, quality_score real)')
    query(
        "insert into \"My files\" (body, language, quality_score) select 'x', 'python', 90 from generate_series(1, 3)"
    )
    with pytest.raises(Misconfigured) as caught:
        check_source(pool, Source.parse('"My files"', "content=body"))
    first, second, columns = re.findall(
        r"one: (ALTER .*?); (CREATE .*?); then SOURCE_COLUMNS is (\S+)$", str(caught.value)
    )[0]
    query(first)
    query(second)
    source = check_source(pool, Source.parse('"My files"', columns))
    assert count(pool, source, ELIGIBLE, STREAM) == 0 and source.types["id"].name == "int8"
    assert query('select codelupe_id from "My files" order by 1') == [(1,), (2,), (3,)]


def test_a_view_gets_its_number_from_the_table_below(pool: Pool, query: Any) -> None:
    query("create table below (id uuid, content text, language text, quality_score real)")
    query("create view above as select * from below")
    with pytest.raises(Misconfigured, match=r"ALTER TABLE the table below the view .* the view's definition gets"):
        check_source(pool, Source(table="above"))


@pytest.mark.parametrize(
    ("table", "columns", "problems"),
    [
        ("a.b.c", "", ["'a.b.c'"]),
        ("", "nonsense,colour=c", ["SOURCE_TABLE", "'nonsense'", "'colour'"]),
        ("t", "id=a,id=b", ["given twice"]),
    ],
)
def test_parse_reports_every_problem(table: str, columns: str, problems: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        Source.parse(table, columns)
    assert all(problem in str(caught.value) for problem in problems)


def test_source_names() -> None:
    assert Source.parse("code_files", "").name == "code_files"
    assert Source.parse("s.t", " quality_score = score , content=body ").name == "s.t(content=body,quality_score=score)"


def test_insert_files(pool: Pool, query: Any) -> None:
    assert is_empty(pool, SOURCE)
    odd = NewFile(
        repository="r", path="a%s.py", language="Python", content="{} %s %% \\ '", quality_score=1.0,
        license="MIT", phase="two", metadata={"stars": 3},
    )  # fmt: skip
    assert insert_files(pool, [odd, *(new_file(number) for number in range(450))]) == 451
    assert not is_empty(pool, SOURCE)
    assert known_paths(pool, "r") == {"a%s.py"}
    assert query("select license, phase, metadata from code_files where id = 1") == [("MIT", "two", {"stars": 3})]
    for bad in ("nul \x00", "half \ud800"):
        with pytest.raises(ValueError, match="NUL"):
            insert_files(pool, [new_file(1, content=bad)])


# --- what comes along with a row ---------------------------------------------------------------------------


def test_metadata_and_license_are_claimed_too(pool: Pool, lease: Lease) -> None:
    insert_files(pool, [new_file(1, metadata={"author": "a", "é": [1]}, license="MIT"), new_file(2)])
    with claim(pool, lease, SOURCE, ELIGIBLE, limit=10, parent_version=None, seed=1) as claimed:
        found = [(row.license, row.metadata) for row in claimed.rows()]
        claimed.cancel()
    assert found == [("MIT", {"author": "a", "é": [1]}), (None, {})]


def test_a_source_without_these_columns_gives_empty_ones(pool: Pool, lease: Lease, query: Any) -> None:
    fill(pool, 1)
    query("create view plain as select id, content, language, quality_score from code_files")
    with claim(pool, lease, Source.parse("plain", ""), ELIGIBLE, limit=10, parent_version=None, seed=1) as claimed:
        assert [(row.license, row.metadata) for row in claimed.rows()] == [(None, {})]
        claimed.cancel()


def test_metadata_must_be_json(pool: Pool, query: Any) -> None:
    query("create view odd as select id, content, language, quality_score, 'x'::text as metadata from code_files")
    with pytest.raises(Misconfigured, match=r"metadata \(for metadata\) must be jsonb or json, not text"):
        check_source(pool, Source.parse("odd", ""))


def test_metadata_that_cannot_be_encoded_rejects_the_row(pool: Pool, lease: Lease, query: Any) -> None:
    good, bad = ['{"a": "\\\\u0000"}', "[1]", "null"], ['{"a": 1e999}', '{"a": "\\u0000"}', '{"a": "\\ud800"}']
    for text in good + bad:
        query("insert into code_files (content, quality_score, license) values (repeat('x', 60), 80, %s)", text)
    query("insert into code_files (content, quality_score, license) values (repeat('x', 60), 80, %s)",
          '{"a": "%s"}' % ("x" * 4_000_000))  # fmt: skip
    query("create view given as select id, content, language, quality_score, license::json as metadata from code_files")
    source = Source.parse("given", "")
    with claim(pool, lease, source, ELIGIBLE, limit=100, parent_version=None, seed=1) as claimed:
        rows = list(claimed.rows())
        assert [row.metadata for row in rows] == [{"a": "\\u0000"}, {}, {}]
        for row in rows:
            claimed.keep(row, "held_out")
    assert query("select file_id, reason from codelupe.ledger where disposition = 'rejected' order by 1") == [
        (number, "bad_metadata") for number in (4, 5, 6, 7)
    ]


def test_a_postponed_row_does_not_count(pool: Pool, lease: Lease, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("db.claim.PAGE_ROWS", 3)
    fill(pool, 20)
    with claim(pool, lease, SOURCE, ELIGIBLE, limit=2, parent_version=None, seed=1) as claimed:
        files = [row.file_id for row in claimed.rows(lambda row: row.file_id % 8 == 0)]
        assert (files, claimed.put_off) == ([8, 16], 14)
        claimed.cancel()
