"""Behind pgbouncer in transaction mode: other programs get nothing of ours, and everything works."""

from __future__ import annotations

import io
import itertools
import os
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest
from bouncer import bouncer, found_by_others, program
from psycopg2 import sql
from scene import new_database, scene

from db import migrate, sentinel
from db.errors import Unavailable
from db.files import CHANNEL
from db.lease import acquire, renew
from db.pool import Pool
from service.cli.doctor import database_findings
from service.database import check_pooler
from service.errors import PreconditionError
from service.settings.environment import PROJECT_RECIPES
from service.settings.load import load_settings

ROOT = Path(__file__).parents[2]
NUMBERS = itertools.count(1)

needs_pgbouncer = pytest.mark.skipif(program() is None, reason="pgbouncer is not installed (apt install pgbouncer)")


@pytest.fixture
def fresh(postgres_url: str) -> dict[str, str]:
    """What a program finds on the server itself."""
    return found_by_others(postgres_url)


@pytest.fixture
def database(postgres_url: str) -> str:
    """An empty database."""
    return new_database(postgres_url, f"pooled_{next(NUMBERS)}")


@needs_pgbouncer
def test_a_service_leaves_nothing_to_others(postgres_url: str, tmp_path: Path, fresh: dict[str, str]) -> None:
    with scene(tmp_path, postgres_url, "pooled_service") as one, bouncer(one.url, pool_size=2) as pooled:
        service = one.start(url=pooled)
        for _ in range(3):
            one.produce(8)
            one.settle()
            for _ in range(10):
                assert found_by_others(pooled) == fresh
        assert service.terminate(20) < 20
        for _ in range(10):
            assert found_by_others(pooled) == fresh
        assert " Paused " not in one.home.log_file.read_text()


@needs_pgbouncer
def test_every_kind_of_transaction_works(postgres_url: str, database: str, fresh: dict[str, str]) -> None:
    """One server session for all: what one transaction leaves, the next one gets."""
    with bouncer(database, pool_size=1) as pooled:
        pool = Pool(pooled)
        assert migrate.apply(pool) and migrate.apply(pool) == []
        with pool.transaction(isolation="repeatable read", read_only=True) as cursor:
            cursor.execute("show transaction_isolation")
            assert cursor.fetchone() == ("repeatable read",)
        with pool.transaction() as cursor:
            cursor.execute("select current_setting('statement_timeout'), current_setting('lock_timeout')")
            assert cursor.fetchone() == ("5min", "30s")
            cursor.execute("select pg_advisory_xact_lock(1)")
            cursor.copy_expert("copy code_files (content) from stdin", io.StringIO("a\nb\n"))
            with cursor.connection.cursor(name="named") as named:
                named.itersize = 1
                named.execute("select content from code_files order by id")
                assert [text for (text,) in named] == ["a", "b"]
        with pytest.raises(Unavailable, match="statement timeout"), pool.transaction() as cursor:
            cursor.execute("set local statement_timeout = '50ms'")
            cursor.execute("select pg_sleep(5)")
        lease = acquire(pool, "s", "holder", 60)
        assert lease is not None
        renew(pool, lease, 60)
        assert found_by_others(pooled) == fresh
        pool.close()
        assert found_by_others(pooled) == fresh


@needs_pgbouncer
def test_behind_a_pooler_nobody_listens(database: str, fresh: dict[str, str]) -> None:
    direct = Pool(database)
    with bouncer(database, pool_size=1) as pooled:
        pool = Pool(pooled)
        assert pool.is_pooled() and not direct.is_pooled()
        with pool.listening(CHANNEL) as notified:
            assert pool.stats().in_use == 0
            assert found_by_others(pooled) == fresh
            with direct.transaction() as cursor:
                cursor.execute("select pg_notify(%s, '')", [CHANNEL])
            began = time.monotonic()
            assert not notified(0.3)
            assert 0.25 < time.monotonic() - began < 2
        pool.close()
    direct.close()


def test_no_connection_sets_anything_for_its_session(database: str, tmp_path: Path) -> None:
    """What psycopg2 sends by itself counts too. The server writes down every statement."""
    pool = Pool(database)
    with closing(psycopg2.connect(database)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("show data_directory")
            log = Path(cursor.fetchone()[0]).parent / "postgres.log"
            cursor.execute("select current_database()")
            (name,) = cursor.fetchone()
            cursor.execute(sql.SQL("alter database {} set log_statement = 'all'").format(sql.Identifier(name)))
    before = log.stat().st_size
    for isolation in ("repeatable read", "read committed"):
        with pool.transaction(isolation=isolation, read_only=True) as cursor:  # type: ignore[arg-type]
            cursor.execute("select 'seen'")
        with pool.listening(CHANNEL) as notified:
            assert not notified(0.01)
    assert pool.serves_two()
    pool.close()
    with log.open() as file:
        file.seek(before)
        statements = [line.split("statement: ", 1)[1].strip().lower() for line in file if "statement: " in line]
    assert "select 'seen'" in statements and any(text.startswith("listen") for text in statements)
    assert [text for text in statements if text.startswith("set ") and not text.startswith("set local")] == []
    assert [text for text in statements if "set_config" in text and ", false" in text] == []


@needs_pgbouncer
def test_one_connection_of_the_pooler_is_too_few(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentinel, "ANSWER_SECONDS", 0.5)
    with bouncer(database, pool_size=1) as pooled:
        pool = Pool(pooled)
        with pytest.raises(PreconditionError, match="A claim needs two"):
            check_pooler(pool)
        pool.close()
    with bouncer(database, pool_size=2) as pooled:
        pool = Pool(pooled)
        check_pooler(pool)
        pool.close()


@needs_pgbouncer
def test_a_long_statement_on_a_full_pooler_is_not_ended(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe has to wait, because the statement itself has the only connection. Nothing is wrong."""
    monkeypatch.setattr(sentinel, "PROBE_AFTER_SECONDS", 0.5)
    monkeypatch.setattr(sentinel, "CHECK_SECONDS", 0.1)
    monkeypatch.setattr(sentinel, "ANSWER_SECONDS", 0.3)
    with bouncer(database, pool_size=1) as pooled:
        pool = Pool(pooled)
        with pool.transaction() as cursor:
            cursor.execute("select pg_sleep(2.5)")
        monkeypatch.setattr(sentinel, "OVERDUE_SECONDS", 1.5)
        with pytest.raises(Unavailable, match="no server behind the pooler answers"), pool.transaction() as cursor:
            cursor.execute("select pg_sleep(20)")
        pool.close()


@needs_pgbouncer
def test_the_service_says_that_it_polls(postgres_url: str, database: str, tmp_path: Path) -> None:
    code = "import sys; from service.cli.main import main; sys.argv = ['codelupe', 'up', '--once']; main()"
    with bouncer(database, pool_size=2) as pooled:
        usual = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "WANDB_"))}
        with subprocess.Popen(
            [sys.executable, "-c", code],
            env={**usual, "DATABASE_URL": pooled, "CODELUPE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT),
                 "METRICS_PORT": "0"},
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            said = ""
            for line in process.stdout:
                said += line
                if "Connection pooler" in line:
                    break
            process.kill()
    assert "no LISTEN" in said, said


@needs_pgbouncer
def test_doctor_works_through_a_pooler(database: str, tmp_path: Path) -> None:
    with bouncer(database, pool_size=1) as pooled:
        given = {"CODELUPE_HOME": str(tmp_path), "DATABASE_URL": pooled}
        settings = load_settings(PROJECT_RECIPES / "embedded.yaml", environment=given, env_file=None)
        found = {finding.check: finding for finding in database_findings(settings)}
    assert "through a connection pooler" in found["database"].said and found["migrations"].state == "note"
