"""The pool waits, checks and recovers. Errors are distinguished, and passwords stay hidden."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from world import in_database

from db import embedded
from db.connection import LimitedConnection
from db.errors import DatabaseError, Misconfigured, Unavailable
from db.pool import Pool
from db.retry import retried
from db.urls import safe_url

Query = Callable[..., list[Any]]
NOWHERE = "postgresql://me:s3cret@127.0.0.1:1/db"


def one(pool: Pool) -> int:
    with pool.transaction() as cursor:
        cursor.execute("select pg_backend_pid()")
        row = cursor.fetchone()
    assert row is not None
    return int(row[0])


def terminate(url: str, pid: int) -> None:
    connection = psycopg2.connect(url)
    with connection, connection.cursor() as cursor:
        cursor.execute("select pg_terminate_backend(%s, 5000)", [pid])
    connection.close()


def test_constructing_does_not_connect() -> None:
    pool = Pool(NOWHERE)
    assert pool.stats().idle == 0
    with pytest.raises(Unavailable, match="cannot be reached") as caught:
        one(pool)
    assert "s3cret" not in str(caught.value)
    assert pool.stats().in_use == 0
    pool.close()
    with pytest.raises(Unavailable, match="closed"):
        one(pool)


def test_a_full_pool_waits_and_then_fails(database_url: str) -> None:
    pool = Pool(database_url, max_connections=2, wait_seconds=0.3)
    with pool.transaction(), pool.transaction():
        assert (pool.stats().in_use, pool.stats().limit) == (2, 2)
        with pytest.raises(Unavailable, match="DB_POOL_MAX_CONN"):
            one(pool)
    pids: list[int] = []
    pool._wait_seconds = 10
    with pool.transaction():
        threads = [threading.Thread(target=lambda: pids.append(one(pool))) for _ in range(12)]
        for thread in threads:
            thread.start()
    for thread in threads:
        thread.join()
    assert len(pids) == 12
    stats = pool.stats()
    assert (stats.in_use, stats.waiting) == (0, 0)
    assert stats.idle == 1  # min_connections
    pool.close()


def test_closing_wakes_waiting_callers(database_url: str) -> None:
    pool = Pool(database_url, max_connections=1, wait_seconds=30)
    errors: list[Exception] = []

    def wait() -> None:
        try:
            one(pool)
        except Unavailable as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    with pool.transaction() as cursor:
        cursor.execute("select 1")
        thread.start()
        while not pool.stats().waiting:
            time.sleep(0.01)
        started = time.monotonic()
        pool._closed = True
        with pool._free:
            pool._free.notify_all()
        thread.join()
        pool._closed = False
    assert time.monotonic() - started < 5
    assert "closed" in str(errors[0])
    pool.close()


def test_closing_while_a_transaction_is_open(database_url: str) -> None:
    pool = Pool(database_url)
    with pytest.raises(Unavailable), pool.transaction() as cursor:
        cursor.execute("select 1")
        pool.close()
        cursor.execute("select 1")
    pool = Pool(database_url)
    with pytest.raises(Unavailable), pool.transaction():
        pool.close()
    assert pool.stats().in_use == 0


def test_a_backend_killed_while_idle_is_replaced_unseen(database_url: str, pool: Pool) -> None:
    first = one(pool)
    assert one(pool) == first  # kept between uses
    terminate(database_url, first)
    assert one(pool) != first
    assert pool.stats().in_use == 0


def test_a_long_idle_connection_is_checked_first(database_url: str, pool: Pool, monkeypatch: Any) -> None:
    first = one(pool)
    monkeypatch.setattr("db.connection.ROUND_TRIP_AFTER_SECONDS", 0.0)
    assert one(pool) == first
    terminate(database_url, first)
    monkeypatch.setattr("select.poll", lambda: _Silent())  # a firewall dropped it, so there is nothing to read
    assert one(pool) != first


class _Silent:
    def register(self, *arguments: object) -> None: ...
    def poll(self, milliseconds: int) -> list[object]:
        return []


def test_a_backend_killed_in_a_transaction_leaks_no_slot(database_url: str) -> None:
    pool = Pool(database_url, max_connections=2, wait_seconds=5)
    for _ in range(6):
        with pytest.raises(Unavailable, match="lost"), pool.transaction() as cursor:
            cursor.execute("select pg_backend_pid()")
            row = cursor.fetchone()
            assert row is not None
            terminate(database_url, row[0])
            cursor.execute("select 1")
    assert pool.stats().in_use == 0
    with pool.transaction(), pool.transaction():
        pass
    pool.close()


def test_a_backend_killed_before_the_commit(database_url: str, pool: Pool) -> None:
    with pytest.raises(Unavailable, match="lost"), pool.transaction() as cursor:
        cursor.execute("select pg_backend_pid()")
        row = cursor.fetchone()
        assert row is not None
        terminate(database_url, row[0])
    assert one(pool)


def test_it_heals_after_a_restart_of_the_server(folder: Path) -> None:
    url = embedded.start(folder)
    pool = Pool(url, max_connections=3, min_connections=3)
    with pool.transaction(), pool.transaction(), pool.transaction():
        pass
    assert pool.stats().idle == 3
    with pytest.raises(Unavailable), pool.transaction() as cursor:
        cursor.execute("select 1")
        embedded.stop(folder)
        cursor.execute("select 1")
    for _ in range(4):
        with pytest.raises(Unavailable):
            one(pool)
    waits: list[float] = []

    def restart(error: Unavailable, seconds: float) -> None:
        waits.append(seconds)
        embedded.start(folder)

    assert retried(lambda: one(pool), give_up_seconds=30, on_wait=restart)
    assert len(waits) == 1
    with pool.transaction(), pool.transaction(), pool.transaction():
        assert pool.stats().in_use == 3
    assert pool.stats().in_use == 0
    pool.close()


def test_an_error_of_the_caller_rolls_back(pool: Pool, query: Query) -> None:
    query("create table notes (n int)")
    with pytest.raises(ZeroDivisionError), pool.transaction() as cursor:
        cursor.execute("insert into notes values (1)")
        cursor.execute("select 1")
        raise ZeroDivisionError
    assert query("select count(*) from notes") == [(0,)]
    assert pool.stats().in_use == 0


def test_isolation_and_read_only_do_not_stick(pool: Pool) -> None:
    def shown(**options: Any) -> tuple[str, str]:
        with pool.transaction(**options) as cursor:
            cursor.execute("select current_setting('transaction_isolation'), current_setting('transaction_read_only')")
            row = cursor.fetchone()
        assert row is not None
        return row[0], row[1]

    assert shown(isolation="repeatable read", read_only=True) == ("repeatable read", "on")
    assert shown() == ("read committed", "off")


def test_statements_have_limits(pool: Pool) -> None:
    with pool.transaction() as cursor:
        cursor.execute(
            "select current_setting('statement_timeout'), current_setting('lock_timeout'), "
            "current_setting('application_name'), current_setting('client_encoding')"
        )
        assert cursor.fetchone() == ("5min", "30s", "codelupe", "UTF8")
    with pytest.raises(Unavailable, match="statement timeout"), pool.transaction() as cursor:
        cursor.execute("set local statement_timeout = '50ms'")
        cursor.execute("select pg_sleep(5)")


def test_behind_a_pooler_it_does_not_listen(pool: Pool, query: Query, monkeypatch: pytest.MonkeyPatch) -> None:
    """LISTEN would belong to a session that others use too. test_pooler.py has a real pgbouncer."""
    monkeypatch.setattr(LimitedConnection, "is_pooled", True)
    with pool.listening("some_channel") as notified:
        assert pool.stats().in_use == 0
        query("notify some_channel")
        assert not notified(0.05)
        assert query("select pg_listening_channels()") == []


# --- what kind of error -------------------------------------------------------------------------------------


def test_wrong_password_and_wrong_database(folder: Path) -> None:
    """A server with password authentication."""
    url = embedded.start(folder)
    connection = psycopg2.connect(url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("create role reader login password 'right'")
        cursor.execute("show hba_file")
        row = cursor.fetchone()
        assert row is not None
        Path(row[0]).write_text("local all postgres trust\nlocal all all scram-sha-256\n")
        cursor.execute("select pg_reload_conf()")
    connection.close()
    time.sleep(0.2)
    wrong = Pool(psycopg2.extensions.make_dsn(url, user="reader", password="wr0ng-secret"))
    with pytest.raises(Misconfigured, match="Check POSTGRES_USER and POSTGRES_PASSWORD") as caught:
        one(wrong)
    assert "wr0ng-secret" not in str(caught.value)
    right = Pool(psycopg2.extensions.make_dsn(url, user="reader", password="right"))
    assert one(right)
    with pytest.raises(Misconfigured, match="Grant the missing right"), right.transaction() as cursor:
        cursor.execute("select * from pg_authid")
    with pytest.raises(Misconfigured, match=r'database "nowhere" does not exist\. Create it'):
        one(Pool(in_database(url, "nowhere")))
    with pytest.raises(Misconfigured, match='role "nobody_here" does not exist'):
        # with trust the missing role is named; with passwords Postgres hides it
        Path(row[0]).write_text("local all all trust\n")
        with Pool(url).transaction() as cursor:
            cursor.execute("select pg_reload_conf()")
        time.sleep(0.2)
        one(Pool(psycopg2.extensions.make_dsn(url, user="nobody_here")))
    right.close()


@pytest.mark.parametrize(
    ("statement", "kind", "said"),
    [
        ("select * from missing_table", Misconfigured, "SOURCE_TABLE"),
        ("select missing_column from codelupe.runs", Misconfigured, "SOURCE_COLUMNS"),
        ("select 1 / 0", DatabaseError, "22012"),
        ("insert into codelupe.ledger values ('s', 1, 1, 'claimed')", DatabaseError, "23503"),
    ],
)
def test_errors_of_statements(pool: Pool, statement: str, kind: type, said: str) -> None:
    with pytest.raises(DatabaseError, match=said) as caught, pool.transaction() as cursor:
        cursor.execute(statement)
    assert type(caught.value) is kind
    assert isinstance(caught.value.__cause__, psycopg2.Error)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:pa@ss@host/db",
        "postgresql://u:p4/ss@host/db",
        "postgresql//u:p4ss@host/db",
        "postgresql://u:p%zz4ss@host/db",
        "",
    ],
)
def test_a_bad_url_is_explained_without_its_password(url: str) -> None:
    with pytest.raises(Misconfigured, match="percent-encoded") as caught:
        Pool(url)
    chain = f"{caught.value} {caught.value.__cause__} {safe_url(url)}"
    assert "ss@" not in chain and "p4" not in chain


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("postgresql://u:p@h/d?schema=public", ["schema (", "SOURCE_TABLE"]),
        ("postgresql://u:p@h/d?sslmode=require&pgbouncer=true&charset=utf8", ["pgbouncer (", ", charset."]),
        ("postgresql://u:p4?a=1@h/d?sslMode=require", ["know: sslMode."]),
        ("host=h password='p4 ss' schema=public", ["schema ("]),
    ],
)
def test_an_option_that_libpq_does_not_know_is_named(url: str, named: list[str]) -> None:
    with pytest.raises(Misconfigured, match=r"Remove .* from DATABASE_URL") as caught:
        Pool(url)
    assert all(name in str(caught.value) for name in named) and "sslmode" not in str(caught.value)
    assert "p4" not in str(caught.value) and "p4" not in safe_url(url)


@pytest.mark.parametrize("url", ["host=h password=p4 ss=1", "postgresql://u:12/p4?ss=1@host/db"])
def test_a_part_of_a_password_is_not_taken_for_an_option(url: str) -> None:
    with pytest.raises(Misconfigured, match="percent-encoded") as caught:
        Pool(url)
    assert "ss" not in str(caught.value).replace("password", "").replace("percent", "")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:s3cret@host:5432/db", "postgresql://me:***@host:5432/db"),
        ("postgres://me:s3%40ret@host/db?sslmode=require", "postgresql://me:***@host/db?sslmode=require"),
        ("postgresql://host/db?user=me&password=s3cret", "postgresql://me:***@host/db"),
        (
            "postgresql://me@/db?host=%2Frun%2Fa%20b&port=5432",
            "postgresql://me@/db?host=/run/a%20b&port=5432",
        ),
        ("host=h password='s3 cret' dbname=d user=u", "user=u password=*** dbname=d host=h"),
        ("postgresql://h/", "postgresql://h/"),
    ],
)
def test_safe_url(url: str, shown: str) -> None:
    assert safe_url(url) == shown


def test_a_url_with_a_socket_survives_safe_url(database_url: str) -> None:
    pool = Pool(safe_url(database_url))
    assert one(pool)
    pool.close()
    assert issubclass(LimitedConnection, psycopg2.extensions.connection)


# --- retrying -----------------------------------------------------------------------------------------------


def test_retrying_gives_up_and_passes_other_errors_on() -> None:
    calls: list[int] = []

    def fail() -> None:
        calls.append(1)
        raise Unavailable("down")

    started = time.monotonic()
    with pytest.raises(Unavailable, match="down"):
        retried(fail, give_up_seconds=0.5)
    assert len(calls) >= 2
    assert time.monotonic() - started < 5

    def misconfigured() -> None:
        calls.append(1)
        raise Misconfigured("no")

    calls.clear()
    with pytest.raises(Misconfigured):
        retried(misconfigured, give_up_seconds=None)
    assert len(calls) == 1


def test_a_stop_ends_the_wait_early() -> None:
    stop = threading.Event()
    calls: list[int] = []

    def fail() -> None:
        calls.append(1)
        raise Unavailable("down")

    def on_wait(error: Unavailable, seconds: float) -> None:
        assert 0 <= seconds <= 30 and str(error) == "down"
        if len(calls) == 3:
            stop.set()

    with pytest.raises(Unavailable):
        retried(fail, give_up_seconds=None, on_wait=on_wait, stop=stop)
    assert len(calls) == 3
