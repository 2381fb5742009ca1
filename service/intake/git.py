"""Runs git as a subprocess."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from service.errors import PreconditionError
from service.logs import event as log

ELSEWHERE = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_COMMON_DIR")
"""Variables that a git hook sets for its own repository."""


def environment() -> dict[str, str]:
    """Return an environment in which git uses the given folder, and its checkout even from another mount."""
    ours = {"LC_ALL": "C", "GIT_DISCOVERY_ACROSS_FILESYSTEM": "1"}
    return {name: value for name, value in os.environ.items() if name not in ELSEWHERE} | ours


def git(root: Path, *arguments: str) -> str | None:
    """Return the output of a git command, or None if it fails or git is missing.

    Bytes that are not UTF-8 become surrogates, as in file names.
    """
    try:
        done = _run(root, *arguments)
    except FileNotFoundError:
        return None
    return done.stdout.decode("utf-8", "surrogateescape").removesuffix("\n") if done.returncode == 0 else None


def git_fields(root: Path, *arguments: str) -> Iterator[bytes]:
    """Yield the NUL-separated fields of a git command's output. Names and messages cannot contain NUL.

    Raises:
        PreconditionError: git failed.
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
                f"git {arguments[0]} could not read {root} to its end (exit {process.returncode}): "
                "see its message above"
            )
    finally:
        process.kill()
        process.communicate()


def is_checkout(root: Path) -> bool:
    """Whether a folder is in a git checkout.

    Raises:
        PreconditionError: it is, but git cannot read it, so .gitignore would be ignored.
    """
    try:
        done = _run(root, "rev-parse", "--is-inside-work-tree", "--is-inside-git-dir", "--is-bare-repository")
    except FileNotFoundError:
        if any((folder / ".git").exists() for folder in (root, *root.parents)):
            log("git is not installed, so .gitignore is ignored", level=logging.WARNING, folder=str(root))
        return False
    said = " ".join(done.stderr.decode("utf-8", "replace").split())
    if done.returncode != 0:
        found = next((path for folder in (root, *root.parents) if os.path.lexists(path := folder / ".git")), None)
        if found is not None or "not a git repository" not in said:
            repair = "" if found is None else f". Repair {found}, or remove it to read the folder without .gitignore"
            raise PreconditionError(f"git cannot read the checkout {root}: {said}{repair}")
        return False
    in_checkout, in_git_dir, bare = (line == b"true" for line in done.stdout.split())
    if bare or in_git_dir:
        return False
    if os.path.lexists(root / ".git") and git(root, "rev-parse", "--show-cdup") != "":  # git went on to a folder above
        raise PreconditionError(
            f"git cannot read the checkout {root}: its .git is damaged. Repair {root / '.git'}, or remove it to read "
            "the folder as a part of the checkout above"
        )
    return in_checkout


def is_git_directory(root: Path) -> bool:
    """Whether a folder is a bare repository (as a mirror is), or in the files of a repository itself.

    Its files are git's, not code. A checkout's own `.git` counts too.
    """
    if root.name != ".git" and not any(is_git_layout(folder) for folder in (root, *root.parents)):
        return (root / ".git").is_file() and git(root, "rev-parse", "--is-bare-repository") == "true"
    try:
        done = _run(root, "rev-parse", "--is-inside-git-dir")
    except FileNotFoundError:
        return True
    return done.returncode != 0 or done.stdout.strip() == b"true"


def is_git_layout(folder: Path) -> bool:
    """Whether a folder looks like a bare repository, by the files that git asks for."""
    return (folder / "HEAD").is_file() and (folder / "objects").is_dir() and (folder / "refs").is_dir()


def is_ignored(root: Path) -> bool:
    """Whether the checkout around a folder ignores the folder itself."""
    return git(root, "check-ignore", "--quiet", str(root)) is not None


def _run(root: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["git", "-C", str(root), *arguments],
        capture_output=True, check=False, stdin=subprocess.DEVNULL, env=environment(),
    )  # fmt: skip
