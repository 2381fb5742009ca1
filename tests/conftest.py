"""What every folder of tests may use: a real Postgres, started once."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest

from db import embedded

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: waiting threads that spin starve the services


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The URL of an embedded Postgres that lives as long as the test session."""
    folder = Path(tempfile.mkdtemp(prefix="codelupe-tests-"))
    url = embedded.start(folder)
    connection = psycopg2.connect(url)
    connection.autocommit = True
    with connection.cursor() as cursor:  # these databases need not survive a power cut
        for setting in ("fsync = off", "synchronous_commit = off", "full_page_writes = off"):
            cursor.execute(f"alter system set {setting}")
        cursor.execute("select pg_reload_conf()")
    connection.close()
    yield url
    embedded.stop(folder)
    shutil.rmtree(folder)
