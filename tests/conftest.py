"""What every folder of tests may use: a real Postgres, started once."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest

from db import embedded


def own_cache() -> None:
    """Keep 4-bit copies out of the home of whoever runs the tests; the Hub's cache stays where it is."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault("HF_HOME", str(usual / "huggingface"))
    os.environ["XDG_CACHE_HOME"] = folder = tempfile.mkdtemp(prefix="codelupe-cache-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)


own_cache()
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
