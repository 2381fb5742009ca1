"""A database for each test, and one headless Chromium that may reach nothing but this machine."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from psycopg2 import sql
from psycopg2.extensions import make_dsn
from stage import Stage
from watching import CHROMIUM, QUIET, Watched

from db import migrate
from db.pool import Pool

NUMBERS = itertools.count(1)


@pytest.fixture
def database_url(postgres_url: str) -> Iterator[str]:
    name = f"page_{next(NUMBERS)}"
    connection = psycopg2.connect(postgres_url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
    yield make_dsn(postgres_url, dbname=name)
    with connection.cursor() as cursor:
        cursor.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))
    connection.close()


@pytest.fixture
def pool(database_url: str) -> Iterator[Pool]:
    pool = Pool(database_url, wait_seconds=10)
    migrate.apply(pool)
    yield pool
    pool.close()


@pytest.fixture
def stage(pool: Pool, tmp_path: Path) -> Stage:
    return Stage(pool, tmp_path / "home")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def watched(browser: Any) -> Iterator[Watched]:
    made = Watched(browser, viewport={"width": 1200, "height": 900})
    yield made
    made.context.close()
