"""Every released schema with data migrates to the schema of a fresh database, completely or not at all."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from psycopg2 import sql
from world import ELIGIBLE, STREAM, execute_outside, in_database

from db import adapters, embedded, migrate, runs
from db.audit import audit
from db.pool import Pool
from db.source import Source

ROOT = Path(__file__).parents[2]
RELEASES = Path(__file__).parent / "releases"
DUMPS = sorted(RELEASES.glob("*.sql"))
NUMBERS = itertools.count(1)


@pytest.fixture
def empty(postgres_url: str) -> Iterator[Callable[[], str]]:
    """Makes empty databases."""
    names = []

    def make() -> str:
        names.append(f"release_{next(NUMBERS)}")
        execute_outside(postgres_url, sql.SQL("create database {}").format(sql.Identifier(names[-1])))
        return in_database(postgres_url, names[-1])

    yield make
    for name in names:
        execute_outside(postgres_url, sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


def restore(dump: Path, url: str) -> None:
    command = [embedded.programs() / "psql", "--quiet", "--set=ON_ERROR_STOP=1", f"--file={dump}", url]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def schema(url: str) -> list[str]:
    """Return pg_dump's schema: columns, types, defaults, constraints, indexes, triggers and functions."""
    command = [embedded.programs() / "pg_dump", "--schema-only", "--no-owner", url]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [line for line in text.splitlines() if not line.startswith(("\\restrict", "\\unrestrict"))]


def apply(url: str) -> list[str]:
    pool = Pool(url)
    try:
        return migrate.apply(pool)
    finally:
        pool.close()


def contents(url: str) -> dict[str, list[dict[str, Any]]]:
    """Return every row of our tables as JSON."""
    with psycopg2.connect(url) as connection, connection.cursor() as cursor:
        cursor.execute("select format('%I.%I', schemaname, tablename) from pg_tables"
                       " where schemaname = 'codelupe' or tablename = 'code_files'")  # fmt: skip
        found = {}
        for (table,) in cursor.fetchall():
            cursor.execute(f"select to_jsonb(t) from {table} t")
            found[table] = [row for (row,) in cursor.fetchall()]
    connection.close()
    return found


def test_the_present_version_has_its_dump() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert (RELEASES / f"{version}.sql").exists(), (
        f"release {version} has no dump: run .venv/bin/python tests/postgres/releases/make.py and commit what it writes"
    )


@pytest.mark.parametrize("dump", DUMPS, ids=lambda dump: dump.stem)
def test_an_old_schema_migrates_to_the_fresh_one(dump: Path, empty: Callable[[], str]) -> None:
    old, fresh = empty(), empty()
    restore(dump, old)
    before = contents(old)
    assert all(before.values()), f"tables without data: {[table for table, rows in before.items() if not rows]}"
    apply(old)
    apply(fresh)
    assert schema(old) == schema(fresh)
    after = contents(old)
    for table, rows in before.items():
        for row in rows:
            assert any(row.items() <= other.items() for other in after[table]), (table, row)


@pytest.mark.parametrize("dump", DUMPS, ids=lambda dump: dump.stem)
def test_the_audit_passes_after_migrating_a_release(dump: Path, empty: Callable[[], str]) -> None:
    url = empty()
    restore(dump, url)
    pool = Pool(url)
    migrate.apply(pool)
    found = audit(pool, Source(), ELIGIBLE, STREAM)
    assert found.problems == []
    assert found.published_runs == 2 and found.trained_rows > 0 and found.held_out == 1
    assert found.claimed > 0 and found.pending > 0 and found.settled["rejected:too_few_lines"] == 1
    current = adapters.current(pool, STREAM)
    assert current is not None and current.parent_version == 1
    live = runs.live(pool, STREAM)
    assert live is not None and (live.state, live.parent_version) == ("training", current.version)
    pool.close()


@pytest.fixture
def next_migration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Adds a migration after the existing ones."""
    folder = tmp_path / "migrations"
    shutil.copytree(migrate.FOLDER, folder)
    monkeypatch.setattr(migrate, "FOLDER", folder)
    return lambda script: (folder / "9999_next.sql").write_text(script) and None


@pytest.mark.parametrize(
    "script",
    [
        "alter table codelupe.runs add column note text not null default 'none'",
        "alter table codelupe.runs alter column launches type bigint",
        "alter table codelupe.ledger drop constraint ledger_pkey",
        "drop index codelupe.run_rows_file",
        "drop trigger append_only on codelupe.run_rows",
        "create or replace function codelupe.run_rows_append_only() returns trigger language plpgsql as "
        "'begin return new; end'",
    ],
)
def test_a_schema_difference_is_detected(
    script: str, empty: Callable[[], str], next_migration: Callable[[str], None]
) -> None:
    old, before, fresh = empty(), empty(), empty()
    restore(DUMPS[0], old)
    apply(before)
    next_migration(script)
    assert "9999_next.sql" in apply(old)
    assert schema(old) != schema(before)
    apply(fresh)
    assert schema(old) == schema(fresh)


def test_a_migration_has_no_statement_timeout(empty: Callable[[], str], next_migration: Callable[[str], None]) -> None:
    """The pool's connections have a statement timeout. Rewriting a large table takes longer."""
    url = empty()
    next_migration("create table codelupe.seen as select current_setting('statement_timeout') as allowed")
    apply(url)
    assert contents(url)["codelupe.seen"] == [{"allowed": "0"}]


def test_a_kill_during_a_migration_leaves_nothing(
    empty: Callable[[], str], next_migration: Callable[[str], None]
) -> None:
    url = empty()
    restore(DUMPS[0], url)
    before = schema(url)
    next_migration("create table codelupe.half (n int); select pg_sleep(3); create table codelupe.whole (n int);")
    code = (
        "import sys; from pathlib import Path; from db import migrate; from db.pool import Pool\n"
        "migrate.FOLDER = Path(sys.argv[1]); migrate.apply(Pool(sys.argv[2]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, migrate.FOLDER, url], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    connection = psycopg2.connect(url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        for _ in range(300):
            cursor.execute("select wait_event = 'PgSleep' from pg_stat_activity"
                           " where datname = current_database() and pid <> pg_backend_pid()")  # fmt: skip
            if cursor.fetchone() == (True,):
                break
            time.sleep(0.05)
        else:
            raise AssertionError("the migration did not begin")
    connection.close()
    process.send_signal(signal.SIGKILL)
    process.wait()
    next_migration("create table codelupe.whole (n int);")
    assert "9999_next.sql" in apply(url)  # waits for the killed one's transaction, which is rolled back
    added = [line for line in schema(url) if line not in before and line.startswith("CREATE TABLE")]
    assert "CREATE TABLE codelupe.whole (" in added and "CREATE TABLE codelupe.half (" not in added
