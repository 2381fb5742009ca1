"""A real pgbouncer in front of a Postgres on a unix socket, on its own port of 127.0.0.1."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg2
from psycopg2.extensions import make_dsn, parse_dsn

from db.server_user import server_identity

START_SECONDS = 10.0
CONFIGURATION = """
[databases]
* = host={host} port={port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own_port}
unix_socket_dir =
auth_type = trust
auth_file = {folder}/users
pool_mode = {mode}
default_pool_size = {pool_size}
max_client_conn = 500
logfile = {folder}/log
"""


def program() -> str | None:
    """Return the path of pgbouncer, or None if it is not installed."""
    return shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _url(url: str, port: int) -> str:
    return str(make_dsn(url, host="127.0.0.1", port=port, sslmode="disable"))


@contextmanager
def bouncer(
    url: str, *, pool_size: int = 2, mode: str = "transaction", roles: Sequence[str] = ("postgres",)
) -> Iterator[str]:
    """Run pgbouncer while the block runs. Yield the URL of the same database through it.

    Each pair of role and database has its own `pool_size` connections to the server. pgbouncer does not run as root,
    so that root starts it as the user of the embedded Postgres.
    """
    parts, identity = parse_dsn(url), server_identity()
    path = program()
    assert path is not None, "pgbouncer is not installed"
    folder, port = Path(tempfile.mkdtemp(prefix="codelupe-bouncer-")), _free_port()
    (folder / "users").write_text("".join(f'"{role}" ""\n' for role in roles))
    (folder / "ini").write_text(
        CONFIGURATION.format(
            host=parts["host"], port=parts["port"], own_port=port, folder=folder, pool_size=pool_size, mode=mode
        )
    )
    for made in (folder, *folder.iterdir()):
        made.chmod(0o755)
        if identity:
            os.chown(made, identity["user"], identity["group"])
    process = subprocess.Popen([path, "-q", folder / "ini"], cwd=folder, **identity)
    try:
        _await(_url(url, port), process, folder)
        yield _url(url, port)
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder)


def _await(url: str, process: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            psycopg2.connect(url).close()
            return
        except psycopg2.OperationalError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                log = folder / "log"
                said = log.read_text()[-2000:] if log.exists() else ""
                raise AssertionError(f"pgbouncer does not answer: {error}\n{said}") from error
            time.sleep(0.02)


SETTINGS = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "default_transaction_isolation",
            "default_transaction_read_only", "enable_seqscan")  # fmt: skip


def found_by_others(url: str) -> dict[str, str]:
    """Return what another program finds in a session of the server: settings, channels and locks."""
    found: dict[str, str] = {}
    with closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
        for name in SETTINGS:
            cursor.execute("select current_setting(%s)", [name])
            found[name] = cursor.fetchone()[0]
        cursor.execute("select coalesce(string_agg(c, ','), '') from pg_listening_channels() c")
        found["channels"] = cursor.fetchone()[0]
        cursor.execute("select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()")
        found["advisory locks"] = str(cursor.fetchone()[0])
    return found
