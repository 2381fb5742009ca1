"""Selects the user that runs an embedded Postgres. Postgres refuses to run as root, so root uses a system user."""

from __future__ import annotations

import logging
import os
import pwd
import shutil
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from db.errors import EmbeddedDatabaseError

SYSTEM_USER = "pgserver"

_log = logging.getLogger(__name__)


def server_identity() -> dict[str, Any]:
    """The user that runs Postgres, as arguments of subprocess.run. Empty if this process is not root."""
    if os.geteuid() != 0:
        return {}
    try:
        entry = _system_user()
    except (OSError, subprocess.CalledProcessError) as error:
        raise EmbeddedDatabaseError(
            f"Postgres does not run as root, and the system user {SYSTEM_USER} could not be created ({error}). "
            "Run as an ordinary user, or set DATABASE_URL"
        ) from error
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def _system_user() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        tool = shutil.which("useradd") or "/usr/sbin/useradd"  # the PATH of a cron job lacks /usr/sbin
        subprocess.run(
            [tool, "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", SYSTEM_USER],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        return pwd.getpwnam(SYSTEM_USER)


def give_to(folder: Path, identity: Mapping[str, Any]) -> None:
    if identity:
        os.chown(folder, identity["user"], identity["group"])


def let_others_enter(path: Path) -> None:
    """Let other users traverse the folders above `path`. They still cannot list these folders."""
    for folder in path.parents:
        mode = folder.stat().st_mode
        if not mode & stat.S_IXOTH:
            _log.warning(
                "Made %s traversable for other users, so that the Postgres user %s can reach its data",
                folder,
                SYSTEM_USER,
            )
            folder.chmod(stat.S_IMODE(mode) | stat.S_IXOTH)


def let_others_read(tree: Path) -> None:
    """Let other users read and execute the files of Postgres. A strict umask during installation prevents that."""
    for path in (tree, *tree.rglob("*")):
        if path.is_symlink():
            continue
        mode = path.stat().st_mode
        wanted = stat.S_IROTH | (stat.S_IXOTH if mode & stat.S_IXUSR else 0)
        if mode & wanted != wanted:
            path.chmod(stat.S_IMODE(mode) | wanted)
