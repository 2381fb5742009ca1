"""A role with few rights: what it is granted is enough for the service, and nothing is created elsewhere."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from psycopg2 import sql
from psycopg2.extensions import make_dsn
from test_releases import DUMPS, restore
from world import ADAPTER, ELIGIBLE, STREAM, Outcome, claim_all, execute_outside, fill, in_database, look_around

from db import migrate, runs, settling
from db.audit import audit
from db.errors import DatabaseError, MigrationNotAllowed
from db.lease import acquire, renew
from db.pool import Pool
from db.source import Source
from db.streams import Binding, bind
from service.cli import main as cli
from service.cli.doctor import database_findings
from service.settings.environment import PROJECT_RECIPES
from service.settings.load import load_settings

NUMBERS = itertools.count(1)
Run = Callable[..., tuple[int, str, str]]


class Server:
    """An empty database with a role that may only connect, and its administrator."""

    def __init__(self, url: str) -> None:
        self.name = f"rights_{next(NUMBERS)}"
        self.role = f'svc "{self.name}"'
        self._server = url
        self.admin_url = in_database(url, self.name)
        self.url = str(make_dsn(self.admin_url, user=self.role))
        self.execute(f"create database {self.name}", database=url)
        quoted = self.role.replace('"', '""')
        self.quoted = f'"{quoted}"'
        self.execute(f"create role {self.quoted} login")

    def execute(self, statement: str, *, database: str | None = None) -> None:
        execute_outside(database or self.admin_url, sql.SQL(statement))  # type: ignore[arg-type]

    def rows(self, statement: str) -> list[Any]:
        connection = psycopg2.connect(self.admin_url)
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
            found = cursor.fetchall()
        connection.close()
        return found

    def drop(self) -> None:
        self.execute(f"drop database {self.name} with (force)", database=self._server)
        self.execute(f"drop role {self.quoted}", database=self._server)


@pytest.fixture
def server(postgres_url: str) -> Iterator[Server]:
    made = Server(postgres_url)
    yield made
    made.drop()


@pytest.fixture
def codelupe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Run:
    """Runs a command in this process. Returns exit code, stdout and stderr."""

    def run(url: str, *arguments: str, **environment: str) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        for name, value in {"CODELUPE_HOME": str(tmp_path / "home"), "DATABASE_URL": url, **environment}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("sys.argv", ["codelupe", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


def cycle(pool: Pool, source: Source) -> None:
    """Do in the database what a service does: bind, poll, claim, settle, audit."""
    bind(pool, STREAM, Binding(source=source.name, base_model="m", base_revision="r", lora={"rank": 8}))
    lease = acquire(pool, STREAM, "tests", 60)
    assert lease is not None
    assert look_around(pool, lease, source=source).rows > 0
    run_id, files = claim_all(pool, lease, source=source)
    renew(pool, lease, 60)
    runs.advance(pool, lease, run_id, "training")
    runs.heartbeat(pool, lease, run_id)
    runs.advance(pool, lease, run_id, "judging")
    outcomes = [Outcome(file_id=number, outcome="trained") for number in files]
    settling.publish(pool, lease, run_id, outcomes, ADAPTER, {"train": {"tokens_published": 10 * len(files)}})
    assert audit(pool, source, ELIGIBLE, STREAM).problems == []


def made_in_public(server: Server) -> list[Any]:
    return server.rows(
        "select relname from pg_class c join pg_namespace n on n.oid = c.relnamespace where nspname = 'public'"
    )


def foreign_source(server: Server) -> Source:
    """A table of another program, in its own schema."""
    server.execute("create schema pipeline")
    server.execute(
        "create table pipeline.files (id bigint primary key, body text not null, language text, quality_score real)"
    )
    server.execute(
        "insert into pipeline.files "
        "select n, '# ' || n || repeat(E'\\nx = 1', 20), 'python', 90 from generate_series(1, 9) n"
    )
    return Source.parse("pipeline.files", "content=body")


def test_a_role_with_few_rights_can_do_all_that_a_service_does(server: Server, codelupe: Run) -> None:
    code, out, _ = codelupe(server.admin_url, "migrate", "--role", server.role, "--json")
    done = json.loads(out)
    assert code == 0 and "0001_initial.sql" in done["applied"] and "source/code_files.sql" in done["applied"]
    assert any(statement.startswith("grant insert on public.code_files") for statement in done["granted"])
    code, out, _ = codelupe(server.admin_url, "migrate", "--role", server.role)
    assert code == 0 and "has all rights" in out

    pool = Pool(server.url)
    assert migrate.apply(pool) == []
    fill(pool, 20)
    cycle(pool, Source())
    pool.close()
    folder = Path.cwd() / "repository"
    folder.mkdir()
    (folder / "a.py").write_text("def f(x):\n    return x + 1\n" * 5)
    code, out, err = codelupe(server.url, "drop", str(folder), "--json")
    assert (code, json.loads(out)["inserted"]) == (0, 1), err
    code, out, err = codelupe(server.url, "status", "--json", CODELUPE_STREAM=STREAM)
    assert (code, json.loads(out)["current_version"]) == (0, 1), err
    _, out, err = codelupe(server.url, "audit", CODELUPE_STREAM=STREAM)
    assert "20 rows trained" in out and "1 problems" in out, out + err  # no folder belongs to this adapter
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        connection = psycopg2.connect(server.url)
        connection.cursor().execute("delete from codelupe.migrations")


def test_with_another_source_nothing_is_made_elsewhere(server: Server, codelupe: Run) -> None:
    source = foreign_source(server)
    names = {"SOURCE_TABLE": source.table, "SOURCE_COLUMNS": "content=body"}
    code, out, err = codelupe(server.admin_url, "migrate", "--role", server.role, "--json", **names)
    assert code == 0, err
    assert not [name for name in json.loads(out)["applied"] if name.startswith("source/")]
    assert made_in_public(server) == []
    pool = Pool(server.url)
    assert migrate.apply(pool, source) == []
    cycle(pool, source)
    pool.close()
    assert made_in_public(server) == []
    assert server.rows(
        "select indexrelid::regclass::text from pg_index where indrelid = 'pipeline.files'::regclass"
    ) == [("pipeline.files_pkey",)]
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        psycopg2.connect(server.url).cursor().execute("delete from pipeline.files")


def test_a_start_that_may_not_migrate_says_who_can(server: Server, codelupe: Run) -> None:
    code, _, err = codelupe(server.url, "status")
    assert code == 3
    for part in ("0001_initial.sql", f"the role {server.role} may not apply them", "codelupe migrate --role 'svc \""):
        assert part in err
    assert server.rows("select 1 from pg_namespace where nspname = 'codelupe'") == []


def test_a_role_may_own_its_schema_alone(server: Server) -> None:
    """Without rights on the database: the administrator has created the schema for it."""
    source = foreign_source(server)
    server.execute(f"create schema codelupe authorization {server.quoted}")
    server.execute(f"grant usage on schema pipeline to {server.quoted}")
    server.execute(f"grant select on pipeline.files to {server.quoted}")
    pool = Pool(server.url)
    assert "0001_initial.sql" in migrate.apply(pool, source)
    cycle(pool, source)
    with pytest.raises(MigrationNotAllowed, match=r"source/code_files\.sql"):
        migrate.apply(pool)
    pool.close()


def test_nothing_is_created_where_nothing_is_outstanding(server: Server) -> None:
    """Even for an owner: what would need a right, or a lock, is not executed."""
    pool = Pool(server.admin_url)
    assert migrate.apply(pool)
    server.execute(
        "create function refuse() returns event_trigger language plpgsql as $$ begin raise 'refused: %', tg_tag; end $$"
    )
    server.execute("create event trigger no_ddl on ddl_command_start execute function refuse()")
    assert migrate.apply(pool) == []
    with pytest.raises(DatabaseError, match="refused: CREATE SCHEMA"), pool.transaction() as cursor:
        cursor.execute("create schema if not exists codelupe")
    pool.close()


@pytest.mark.parametrize("dump", DUMPS, ids=lambda dump: dump.stem)
def test_tables_of_a_later_migration_are_granted_too(
    dump: Path, server: Server, codelupe: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    restore(dump, server.admin_url)
    assert codelupe(server.admin_url, "migrate", "--role", server.role)[0] == 0
    server.execute("create role reader_only; grant usage on schema codelupe to reader_only")
    server.execute("grant select on all tables in schema codelupe to reader_only")
    folder = tmp_path / "migrations"
    shutil.copytree(migrate.FOLDER, folder)
    (folder / "9999_next.sql").write_text("create table codelupe.later (n int);")
    monkeypatch.setattr(migrate, "FOLDER", folder)
    try:
        code, _, err = codelupe(server.url, "status")
        assert code == 3 and "9999_next.sql" in err
        assert codelupe(server.admin_url, "migrate")[0] == 0  # without naming the role again
        assert codelupe(server.url, "status")[0] == 0
        pool = Pool(server.url)
        with pool.transaction() as cursor:
            cursor.execute("insert into codelupe.later values (1)")
        pool.close()
        ((allowed,),) = server.rows("select has_table_privilege('reader_only', 'codelupe.later', 'select')")
        assert not allowed, "a role that does not write for a service gets nothing"
    finally:
        server.execute("drop owned by reader_only")
        server.execute("drop role reader_only")


def test_what_an_administrator_may_not_give(server: Server, codelupe: Run) -> None:
    code, _, err = codelupe(server.admin_url, "migrate", "--role", "nobody_here")
    assert code == 3 and "the role nobody_here does not exist" in err
    code, _, err = codelupe(server.admin_url, "migrate", "--role", server.role, SOURCE_TABLE="not_there")
    assert code == 3 and "not_there does not exist" in err


def test_drop_is_refused_without_the_right_to_insert(server: Server, codelupe: Run, tmp_path: Path) -> None:
    assert codelupe(server.admin_url, "migrate", "--role", server.role)[0] == 0
    server.execute(f"revoke insert on code_files from {server.quoted}")
    (tmp_path / "a.py").write_text("x = 1\n" * 20)
    code, _, err = codelupe(server.url, "drop", str(tmp_path / "a.py"))
    assert code == 3 and "may not insert into code_files" in err and "grant insert on public.code_files to" in err
    assert server.rows("select count(*) from code_files") == [(0,)]


# --- doctor ---------------------------------------------------------------------------------------------------


def examined(server: Server, tmp_path: Path, **environment: str) -> dict[str, Any]:
    given = {"CODELUPE_HOME": str(tmp_path), "DATABASE_URL": server.url, **environment}
    settings = load_settings(PROJECT_RECIPES / "embedded.yaml", environment=given, env_file=None)
    return {finding.check: finding for finding in database_findings(settings)}


@pytest.mark.parametrize(
    ("revoked", "grant"),
    [
        ("select on pipeline.files", "grant select on pipeline.files to"),
        ("usage on schema pipeline", "grant usage on schema pipeline to"),
        ("usage on schema codelupe", "grant usage on schema codelupe to"),
        ("delete on codelupe.fingerprints", "grant delete on codelupe.fingerprints to"),
        ("select on codelupe.migrations", "grant select on codelupe.migrations to"),
    ],
)
def test_doctor_names_the_missing_grant(
    server: Server, codelupe: Run, tmp_path: Path, revoked: str, grant: str
) -> None:
    names = {"SOURCE_TABLE": foreign_source(server).table, "SOURCE_COLUMNS": "content=body"}
    assert codelupe(server.admin_url, "migrate", "--role", server.role, **names)[0] == 0
    assert {finding.state for finding in examined(server, tmp_path, **names).values()} == {"ok"}
    server.execute(f"revoke {revoked} from {server.quoted}")
    found = examined(server, tmp_path, **names)
    assert list(found) == ["database", "rights"] and found["rights"].state == "failed"
    assert grant in str(found["rights"].mend)
    statement = str(found["rights"].mend).split("psql -c '")[1].split("'")[0]
    server.execute(statement)
    assert {finding.state for finding in examined(server, tmp_path, **names).values()} == {"ok"}


def test_doctor_names_the_right_to_create(server: Server, tmp_path: Path) -> None:
    found = examined(server, tmp_path)["migrations"]
    assert found.state == "failed" and "may not apply them" in found.said
    for part in (f"grant create on database {server.name} to", "grant create on schema public to", "codelupe migrate"):
        assert part in str(found.mend)


def test_doctor_notes_that_drop_may_not_insert(server: Server, codelupe: Run, tmp_path: Path) -> None:
    assert codelupe(server.admin_url, "migrate", "--role", server.role)[0] == 0
    server.execute(f"revoke insert on code_files from {server.quoted}")
    found = examined(server, tmp_path)
    assert (found["rights"].state, found["source"].state) == ("note", "ok")
    assert "codelupe drop" in found["rights"].said and "grant insert on public.code_files" in found["rights"].said
