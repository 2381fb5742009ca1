"""The lease, and what a stream is bound to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from world import STREAM

from db import migrate
from db.errors import LeaseLost, Misconfigured, StreamMismatch
from db.lease import Lease, acquire, fence, holder, release, renew
from db.pool import Pool
from db.streams import Binding, bind, get, request_training, training_requested

Query = Callable[..., list[Any]]
NAMES = sorted(path.name for path in migrate.FOLDER.glob("*.sql"))
SOURCE_NAMES = sorted(f"source/{path.name}" for path in migrate.FOLDER.glob("source/*.sql"))


def test_one_holder_at_a_time(pool: Pool) -> None:
    first = acquire(pool, STREAM, "a", 60)
    assert first == Lease(stream=STREAM, holder="a", epoch=1)
    assert acquire(pool, STREAM, "b", 60) is None
    found = holder(pool, STREAM)
    assert found is not None and found[0] == "a" and 55 < found[1] <= 60
    renew(pool, first, 120)
    found = holder(pool, STREAM)
    assert found is not None and found[1] > 100
    release(pool, first)
    assert holder(pool, STREAM) is None
    second = acquire(pool, STREAM, "b", 60)
    assert second is not None and second.epoch == 2
    release(pool, first)  # lost long ago: b keeps the lease
    found = holder(pool, STREAM)
    assert found is not None and found[0] == "b"


def test_the_same_holder_takes_it_again_with_a_new_epoch(pool: Pool) -> None:
    first, second = (acquire(pool, STREAM, "a", 60) for _ in range(2))
    assert first is not None and second is not None and second.epoch == first.epoch + 1
    with pytest.raises(LeaseLost), pool.transaction() as cursor:
        fence(cursor, first)
    with pytest.raises(LeaseLost):
        renew(pool, first, 60)
    renew(pool, second, 60)


def test_anyone_may_take_an_expired_lease(pool: Pool, query: Query) -> None:
    first = acquire(pool, STREAM, "a", 60)
    assert first is not None
    query("update codelupe.leases set expires_at = now() - interval '1 ms'")
    assert holder(pool, STREAM) is None
    for attempt in (lambda: renew(pool, first, 60), lambda: _fenced(pool, first)):
        with pytest.raises(LeaseLost):
            attempt()
    second = acquire(pool, STREAM, "b", 60)
    assert second is not None and second.epoch == 2


def _fenced(pool: Pool, lease: Lease) -> None:
    with pool.transaction() as cursor:
        fence(cursor, lease)


def test_one_of_many_concurrent_requests_gets_the_lease(database_url: str) -> None:
    pool = Pool(database_url, max_connections=8)
    got: list[Lease | None] = []
    threads = [threading.Thread(target=lambda n=n: got.append(acquire(pool, STREAM, f"h{n}", 60))) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 8
    assert len([lease for lease in got if lease is not None]) == 1
    pool.close()


def test_a_stream_is_bound_once(pool: Pool) -> None:
    binding = Binding(source="code_files", base_model="m", base_revision="r1", lora={"rank": 8, "targets": ("q", "v")})
    assert get(pool, STREAM) is None
    bind(pool, STREAM, binding)
    bind(pool, STREAM, binding)
    found = get(pool, STREAM)
    assert found is not None and found.base_revision == "r1" and found.lora["targets"] == ["q", "v"]
    other = Binding(source="code_files", base_model="m2", base_revision="r1", lora={"rank": 16, "targets": ["q"]})
    with pytest.raises(StreamMismatch, match="choose a new stream name, with CODELUPE_STREAM") as caught:
        bind(pool, STREAM, other)
    assert caught.value.problems == [
        "base.model: the stream has 'm', the recipe 'm2'",
        "lora.rank: the stream has 8, the recipe 16",
        "lora.targets: the stream has ['q', 'v'], the recipe ['q']",
    ]


def test_asking_for_a_run(pool: Pool) -> None:
    assert not training_requested(pool, STREAM)
    request_training(pool, STREAM)
    request_training(pool, STREAM)
    assert training_requested(pool, STREAM)
    assert not training_requested(pool, "another")


# --- migrations ---------------------------------------------------------------------------------------------


def test_migrations_apply_once_however_many_ask(postgres_url: str) -> None:
    from psycopg2 import sql
    from world import execute_outside, in_database

    execute_outside(postgres_url, sql.SQL("create database empty"))
    pool = Pool(in_database(postgres_url, "empty"), max_connections=4)
    assert migrate.pending(pool) == NAMES + SOURCE_NAMES
    results: list[list[str]] = []
    threads = [threading.Thread(target=lambda: results.append(migrate.apply(pool))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [[], [], [], NAMES + SOURCE_NAMES]
    assert migrate.pending(pool) == []
    pool.close()


def test_migrations_refuse_what_they_do_not_know(
    pool: Pool, query: Query, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts = {name: (migrate.FOLDER / name).read_text() for name in NAMES}
    monkeypatch.setattr(migrate, "FOLDER", tmp_path)
    for look in (migrate.pending, migrate.apply):
        with pytest.raises(Misconfigured, match=rf"does not know \({', '.join(NAMES)}\)"):
            look(pool)
    for name, script in scripts.items():
        (tmp_path / name).write_text(script)
    (tmp_path / NAMES[0]).write_text(scripts[NAMES[0]] + "-- changed\n")
    for look in (migrate.pending, migrate.apply):
        with pytest.raises(Misconfigured, match=r"changed afterwards \(0001_initial.sql\)"):
            look(pool)
    (tmp_path / NAMES[0]).write_text(scripts[NAMES[0]])
    (tmp_path / "9001_next.sql").write_text("create table codelupe.next (note text default '100%');")
    (tmp_path / "9002_broken.sql").write_text("create table codelupe.broken (;")
    with pytest.raises(
        Misconfigured, match=r"migration 9002_broken.sql failed, and the database was not changed: .*syntax error"
    ):
        migrate.apply(pool)
    assert migrate.pending(pool) == ["9001_next.sql", "9002_broken.sql"]  # all or none
    (tmp_path / "9002_broken.sql").unlink()
    assert migrate.apply(pool) == ["9001_next.sql"]
    (tmp_path / "0001_late.sql").write_text("select 1")
    with pytest.raises(Misconfigured, match="Give it a higher number"):
        migrate.apply(pool)


def test_a_database_without_migrations_says_so(postgres_url: str) -> None:
    pool = Pool(postgres_url)
    with pytest.raises(Misconfigured, match="Run the migrations"):
        holder(pool, STREAM)
    pool.close()


def test_a_holder_that_stops_during_a_write_does_not_keep_the_lease(pool: Pool, lease: Lease) -> None:
    """Its transaction locks the lease row. The server ends it much earlier than other idle transactions."""

    def patience(cursor: Any) -> str:
        cursor.execute("show idle_in_transaction_session_timeout")
        return str(cursor.fetchone()[0])

    with pool.transaction() as cursor:
        assert patience(cursor) == "10min"
        fence(cursor, lease, lock=False)  # a claim may pause in between
        assert patience(cursor) == "10min"
        fence(cursor, lease)
        assert patience(cursor) == "15s"
    with pool.transaction() as cursor:
        assert patience(cursor) == "10min"
