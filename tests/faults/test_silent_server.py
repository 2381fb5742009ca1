"""The pool's sentinel ends waits on a silent database."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import psycopg2
import pytest
from proxy import Proxy
from scene import server

from db import sentinel
from db.errors import Unavailable
from db.pool import Pool


@pytest.fixture(autouse=True)
def short_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentinel, "PROBE_AFTER_SECONDS", 0.6)
    monkeypatch.setattr(sentinel, "CHECK_SECONDS", 0.1)
    monkeypatch.setattr(sentinel, "ANSWER_SECONDS", 0.5)


@pytest.fixture(scope="module")
def freezable_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("postgres")
    with server(folder) as url:
        yield url, folder


@pytest.fixture
def proxy(postgres_url: str) -> Iterator[Proxy]:
    made = Proxy(postgres_url)
    yield made
    made.close()


def processes(folder: Path) -> list[psutil.Process]:
    postmaster = psutil.Process(int((folder / "pgdata" / "postmaster.pid").read_text().split()[0]))
    return [postmaster, *postmaster.children(recursive=True)]


def sentinel_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "database sentinel"]


def activity(url: str, pid: int) -> list[tuple[str]]:
    connection = psycopg2.connect(url)
    with connection, connection.cursor() as cursor:
        cursor.execute("select state from pg_stat_activity where pid = %s", [pid])
        found = cursor.fetchall()
    connection.close()
    return found


def has_ended(url: str, pid: int) -> bool:
    deadline = time.monotonic() + 10
    while activity(url, pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_a_frozen_server_is_unavailable_and_its_transaction_ends_after_it_resumes(
    freezable_server: tuple[str, Path],
) -> None:
    url, folder = freezable_server
    pool = Pool(url, max_connections=2)
    with pool.transaction() as cursor:
        cursor.execute("create table if not exists notes (n int)")
    frozen: list[psutil.Process] = []
    try:
        with pytest.raises(Unavailable, match="does not answer a second connection"), pool.transaction() as cursor:
            cursor.execute("insert into notes values (1)")
            cursor.execute("lock table notes")
            pid = cursor.connection.info.backend_pid
            frozen = processes(folder)
            for process in frozen:
                process.suspend()
            began = time.monotonic()
            cursor.execute("select 1")
        assert time.monotonic() - began < 5
        assert pool.stats().in_use == 0
    finally:
        for process in frozen:
            process.resume()
    assert has_ended(url, pid)
    with pool.transaction() as cursor:
        cursor.execute("select count(*) from notes")
        assert cursor.fetchone() == (0,)
    pool.close()
    assert not sentinel_threads()


def test_a_copy_into_a_frozen_server_is_ended(freezable_server: tuple[str, Path]) -> None:
    url, folder = freezable_server
    pool = Pool(url)

    class Endless:
        def read(self, size: int) -> str:
            if not frozen:
                for process in processes(folder):
                    process.suspend()
                    frozen.append(process)
            return "1\n" * (size // 2)

    frozen: list[psutil.Process] = []
    try:
        with pytest.raises(Unavailable, match="does not answer"), pool.transaction() as cursor:
            cursor.execute("create temporary table copied (n int)")
            cursor.copy_expert("copy copied from stdin", Endless())
    finally:
        for process in frozen:
            process.resume()
    assert frozen and pool.stats().in_use == 0
    pool.close()


def test_a_long_statement_on_a_responsive_server_is_not_ended(proxy: Proxy, postgres_url: str) -> None:
    pool = Pool(proxy.url(postgres_url))
    with pool.transaction() as cursor:
        cursor.execute("select pg_sleep(1.8)")
        cursor.execute("select 1")
        assert cursor.fetchone() == (1,)
    pool.close()


def test_many_short_statements_are_not_ended(proxy: Proxy, postgres_url: str) -> None:
    """To the sentinel's thread, many short statements look like one long statement."""
    pool = Pool(proxy.url(postgres_url))
    proxy.delay(0.05)
    until = time.monotonic() + 2
    with pool.transaction() as cursor:
        while time.monotonic() < until:
            cursor.execute("select 1")
    pool.close()


@pytest.mark.parametrize("new_ones", [True, False])
def test_a_statement_in_a_black_hole_is_ended(proxy: Proxy, postgres_url: str, new_ones: bool) -> None:
    """It also ends when new connections work: the server then reports that the first connection is idle."""
    pool = Pool(proxy.url(postgres_url))
    give_up = threading.Timer(20, proxy.reset)  # otherwise the test would hang where the sentinel does nothing
    give_up.start()
    message = "does not answer" if new_ones else "the statement or its answer was lost"
    with pytest.raises(Unavailable, match=message), pool.transaction() as cursor:
        cursor.execute("select 1")
        pid = cursor.connection.info.backend_pid
        proxy.black_hole(new_ones=new_ones)
        began = time.monotonic()
        cursor.execute("select 1")
    give_up.cancel()
    assert time.monotonic() - began < 5
    assert new_ones == bool(activity(postgres_url, pid)) or has_ended(postgres_url, pid)
    proxy.heal()
    assert has_ended(postgres_url, pid)
    pool.close()


def test_an_orphaned_transaction_is_ended(proxy: Proxy, postgres_url: str) -> None:
    """The network closed only the client's side. Without the sentinel, the locks would stay for ten minutes."""
    pool = Pool(proxy.url(postgres_url))
    with pytest.raises(Unavailable, match="lost"), pool.transaction() as cursor:
        cursor.execute("select 1")
        pid = cursor.connection.info.backend_pid
        proxy.reset(server_too=False)
        cursor.execute("select 1")
    assert has_ended(postgres_url, pid)
    pool.close()


def test_an_error_of_another_connection_counts_as_a_lost_connection(proxy: Proxy, postgres_url: str) -> None:
    """A claim holds two connections. When the outer one is lost, the error is raised inside the inner one's block."""
    pool = Pool(proxy.url(postgres_url))
    with pool.transaction() as outer:
        outer.execute("select 1")
        with pytest.raises(Unavailable, match="lost"), pool.transaction() as inner:
            inner.execute("select 1")
            raise psycopg2.DatabaseError("server closed the connection unexpectedly")
    pool.close()


def test_two_silent_connections_are_waited_for_once(proxy: Proxy, postgres_url: str) -> None:
    """A caller with two connections does not wait for the second after the first."""
    pool = Pool(proxy.url(postgres_url))
    with pytest.raises(Unavailable), pool.transaction() as outer:
        outer.execute("select 1")
        pid = outer.connection.info.backend_pid
        with pool.transaction() as inner:
            inner.execute("select 1")
            proxy.black_hole(new_ones=False)
            began = time.monotonic()
            outer.execute("select 1")
    assert time.monotonic() - began < 1.4
    assert has_ended(postgres_url, pid)
    pool.close()


def test_a_commit_stands_when_its_answer_is_lost(proxy: Proxy, postgres_url: str) -> None:
    pool = Pool(proxy.url(postgres_url))
    with pool.transaction() as cursor:
        cursor.execute("create schema if not exists codelupe")
        cursor.execute("create table if not exists codelupe.notes (n int)")
    proxy.lose_answer("hole")
    with pytest.raises(Unavailable, match="its answer was lost"), pool.transaction() as cursor:
        cursor.execute("insert into codelupe.notes values (1)")
    with pool.transaction() as cursor:
        cursor.execute("delete from codelupe.notes")
        assert cursor.rowcount == 1
    pool.close()


def test_a_silent_new_connection_is_unavailable(proxy: Proxy, postgres_url: str) -> None:
    """The connection is silent before the pool knows its server process."""
    pool = Pool(proxy.url(postgres_url))
    for first in (b"pg_backend_pid", b"set local statement_timeout"):
        proxy.lose_answer("hole", to=first)
        with pytest.raises(Unavailable), pool.transaction():
            pass
    with pool.transaction() as cursor:
        cursor.execute("select 1")
    pool.close()


def test_a_connection_that_breaks_at_once_is_unavailable(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        raise OSError("Transport endpoint is not connected")

    monkeypatch.setattr(sentinel, "_address", broken)
    pool = Pool(postgres_url)
    with pytest.raises(Unavailable, match="broke at once"), pool.transaction():
        pass
    assert pool.stats().in_use == 0
    pool.close()


def test_a_server_with_no_connection_left_counts_as_responsive(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = Pool(postgres_url)
    asked = []

    def refused(*_: object, **__: object) -> None:
        asked.append(1)
        raise psycopg2.OperationalError("connection to server failed: FATAL:  sorry, too many clients already")

    with pool.transaction() as cursor:
        cursor.execute("select 1")
        monkeypatch.setattr(sentinel, "_Probe", refused)
        cursor.execute("select pg_sleep(2)")
    assert asked
    pool.close()


def test_closing_the_pool_ends_a_statement_and_the_sentinel(proxy: Proxy, postgres_url: str) -> None:
    pool = Pool(proxy.url(postgres_url))

    def sleep() -> None:
        with pool.transaction() as cursor:
            cursor.execute("select 1")
            started.set()
            cursor.execute("select pg_sleep(60)")

    started = threading.Event()
    with ThreadPoolExecutor() as threads:
        future = threads.submit(sleep)
        started.wait()
        time.sleep(0.2)
        began = time.monotonic()
        pool.close()
        with pytest.raises(Unavailable):
            future.result()
    assert time.monotonic() - began < 3
    assert not sentinel_threads()


def test_repeated_silences_leave_no_connection_and_no_thread(proxy: Proxy, postgres_url: str) -> None:
    pool = Pool(proxy.url(postgres_url))
    for _ in range(2):
        with pytest.raises(Unavailable), pool.transaction() as cursor:
            cursor.execute("select 1")
            proxy.black_hole(new_ones=True)
            cursor.execute("select 1")
        proxy.heal()
        with pool.transaction() as cursor:
            cursor.execute("select 1")
    deadline = time.monotonic() + 5
    while clients_of(proxy) > 1 and time.monotonic() < deadline:
        time.sleep(0.05)  # the sentinel may be probing
    assert clients_of(proxy) == 1
    assert len(sentinel_threads()) == 1
    pool.close()
    assert not sentinel_threads() and not clients_of(proxy)


def clients_of(proxy: Proxy) -> int:
    """Return how many sockets of this process lead to the proxy, in any state."""
    found = psutil.Process().net_connections("tcp")
    return sum(1 for one in found if one.raddr and one.raddr.port == proxy.port and one.fd != -1)


def test_an_unclosed_pool_leaves_no_thread(postgres_url: str) -> None:
    pool = Pool(postgres_url)
    with pool.transaction() as cursor:
        cursor.execute("select 1")
    assert len(sentinel_threads()) == 1
    del pool, cursor
    deadline = time.monotonic() + 5
    while sentinel_threads() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not sentinel_threads()
