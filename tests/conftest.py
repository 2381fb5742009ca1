"""Fixtures for all tests: a real Postgres, started once per session."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest

from db import embedded


def use_temporary_cache() -> None:
    """Keep 4-bit copies out of the user's home. The Hub's cache stays where it is."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault("HF_HOME", str(usual / "huggingface"))
    os.environ["XDG_CACHE_HOME"] = folder = tempfile.mkdtemp(prefix="codelupe-cache-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)


use_temporary_cache()
if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # started in the background: Ctrl-C must reach what the tests start
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Set these before torch is imported. Several tests run at once, each with its own processes: one thread each is
# faster than threads that compete for the cores. The number must not change later, because sums then change their
# order, and a resumed run its last bits. Waiting threads that spin would slow the services down.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """Yield the URL of an embedded Postgres that runs for the whole test session."""
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
