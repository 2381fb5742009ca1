"""git as a process: what it says of a folder, and where it cannot say anything."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from service.errors import PreconditionError
from service.logs import event as log

ELSEWHERE = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_COMMON_DIR")
"""What a hook has set names the hook's own repository."""


def environment() -> dict[str, str]:
    """The environment of a git that looks at the folder it is told."""
    return {name: value for name, value in os.environ.items() if name not in ELSEWHERE} | {"LC_ALL": "C"}


def git(root: Path, *arguments: str) -> str | None:
    """Output of a git command in a folder; None where it fails, or without git. Bytes that are not UTF-8 come as
    surrogates, as in names of files."""
    try:
        done = _run(root, *arguments)
    except FileNotFoundError:
        return None
    return done.stdout.decode("utf-8", "surrogateescape").removesuffix("\n") if done.returncode == 0 else None


def git_fields(root: Path, *arguments: str) -> Iterator[bytes]:
    """What a git command says between NUL characters, as it comes: no name and no message can hold one.

    Raises:
        PreconditionError: it did not end well.
    """
    command = ["git", "-C", str(root), *arguments]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment())
    assert process.stdout is not None
    held = b""
    try:
        while chunk := process.stdout.read(1 << 16):
            *whole, held = (held + chunk).split(b"\0")
            yield from whole
        yield held
        if process.wait() != 0:
            raise PreconditionError(
                f"git {arguments[0]} could not read {root} to its end (exit {process.returncode}); "
                "what it says stands above"
            )
    finally:
        process.kill()
        process.communicate()


def is_checkout(root: Path) -> bool:
    """Whether a folder lies in a git checkout.

    Raises:
        PreconditionError: it does, and git does not read it (of another user, say): .gitignore would not be honoured.
    """
    try:
        done = _run(root, "rev-parse", "--is-inside-work-tree")
    except FileNotFoundError:
        if any((folder / ".git").exists() for folder in (root, *root.parents)):
            log("git is not installed: .gitignore is not honoured", level=logging.WARNING, folder=str(root))
        return False
    said = " ".join(done.stderr.decode("utf-8", "replace").split())
    if done.returncode != 0 and "not a git repository" not in said:
        raise PreconditionError(f"git cannot read the checkout {root}: {said}")
    return done.returncode == 0 and done.stdout.strip() == b"true"


def _run(root: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["git", "-C", str(root), *arguments],
        capture_output=True, check=False, stdin=subprocess.DEVNULL, env=environment(),
    )  # fmt: skip
