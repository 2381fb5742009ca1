"""A migrated template database, cloned for each test."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from psycopg2 import sql
from world import STREAM, execute_outside, in_database

from db import embedded, migrate
from db.lease import Lease, acquire
from db.pool import Pool
from db.streams import Binding, bind

NUMBERS = itertools.count(1)


@pytest.fixture(scope="session")
def initialised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of a stopped server. Copying it takes a tenth of initdb's time."""
    folder = tmp_path_factory.mktemp("initialised")
    embedded.start(folder)
    embedded.stop(folder)
    with (folder / "pgdata" / "postgresql.conf").open("a") as file:
        file.write("fsync = off\n")
    return folder


@pytest.fixture
def folder(initialised: Path) -> Iterator[Path]:
    """A data folder for one test, with a space in its name. Its server is stopped afterwards."""
    parent = Path(tempfile.mkdtemp(prefix="codelupe-tests-"))
    data_folder = parent / "a b"
    data_folder.mkdir()
    subprocess.run(["cp", "-a", initialised / "pgdata", data_folder], check=True)
    yield data_folder
    embedded.stop(data_folder)
    shutil.rmtree(parent)


@pytest.fixture(scope="session")
def template(postgres_url: str) -> str:
    name = "codelupe_template"
    execute_outside(postgres_url, sql.SQL("create database {}").format(sql.Identifier(name)))
    pool = Pool(in_database(postgres_url, name))
    migrate.apply(pool)
    pool.close()
    return name


@pytest.fixture
def database_url(postgres_url: str, template: str) -> Iterator[str]:
    """A migrated database for one test."""
    name = f"test_{next(NUMBERS)}"
    execute_outside(
        postgres_url,
        sql.SQL("create database {} template {}").format(sql.Identifier(name), sql.Identifier(template)),
    )
    yield in_database(postgres_url, name)
    execute_outside(postgres_url, sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


@pytest.fixture
def pool(database_url: str) -> Iterator[Pool]:
    pool = Pool(database_url, wait_seconds=10)
    yield pool
    pool.close()


@pytest.fixture
def lease(pool: Pool) -> Lease:
    """A bound stream and its lease."""
    bind(pool, STREAM, Binding(source="code_files", base_model="m", base_revision="r", lora={"rank": 8}))
    lease = acquire(pool, STREAM, "tests", 600)
    assert lease is not None
    return lease


@pytest.fixture
def query(pool: Pool) -> Callable[..., list[Any]]:
    """Returns the rows of a statement, in its own transaction."""

    def run(statement: str, *parameters: Any) -> list[Any]:
        with pool.transaction() as cursor:
            cursor.execute(statement, parameters or None)
            return cursor.fetchall() if cursor.description else []

    return run
