"""Finds the process of an embedded Postgres by its folder, and stops it."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlencode

import psutil  # type: ignore[import-untyped]

from db.errors import EmbeddedDatabaseError

SUPERUSER = "postgres"
PORT = 5432
"""Part of the name of the socket file. Nothing listens on TCP."""
STOP_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running postmaster."""

    pid: int
    socket_folder: Path

    @property
    def socket(self) -> Path:
        return self.socket_folder / f".s.PGSQL.{PORT}"

    def url(self, database: str) -> str:
        where = urlencode({"host": str(self.socket_folder), "port": PORT}, quote_via=quote)
        return f"postgresql://{SUPERUSER}@/{database}?{where}"


def running_server(data_folder: Path) -> Server | None:
    """Return the server that postmaster.pid names, if that process is a Postgres of this folder."""
    try:
        lines = (data_folder / "pgdata" / "postmaster.pid").read_text().splitlines()
        pid, socket_folder = int(lines[0]), lines[4]
    except (FileNotFoundError, NotADirectoryError, IndexError, ValueError):
        return None
    except PermissionError as error:
        raise EmbeddedDatabaseError(f"{data_folder} belongs to another user ({error}). Run as that user") from error
    if not socket_folder or not is_postmaster(pid, data_folder / "pgdata"):
        return None
    return Server(pid=pid, socket_folder=Path(socket_folder))


def is_postmaster(pid: int, pgdata: Path) -> bool:
    """Whether a process is the Postgres of `pgdata`. After a crash or reboot, its id may belong to another program."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and str(pgdata) in process.cmdline()
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:  # a process of another user, so it is not our server
        return False


def terminate(server: Server) -> None:
    """Request a fast shutdown. If the server is still running after STOP_SECONDS, request an immediate shutdown.

    Raises:
        EmbeddedDatabaseError: the server belongs to another user, or does not stop.
    """
    for number, seconds in ((signal.SIGINT, STOP_SECONDS), (signal.SIGQUIT, 10.0)):
        try:
            os.kill(server.pid, number)
        except ProcessLookupError:
            return
        except PermissionError as error:
            raise EmbeddedDatabaseError(
                f"the embedded Postgres (process {server.pid}) belongs to another user. Stop it as that user"
            ) from error
        if _ended(server.pid, seconds):
            return
    raise EmbeddedDatabaseError(f"the embedded Postgres (process {server.pid}) does not stop")


def _ended(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not is_alive(pid):
            return True
        time.sleep(0.02)
    return False


def is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
