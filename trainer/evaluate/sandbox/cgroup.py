"""Limits the memory of a whole sandbox by a cgroup (version 2), where one may be made.

A group with processes in it cannot hand the memory controller down, so a sandbox's group is made beside the trainer's
own (its parent must be delegated), or below it if the controller is already handed down.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from trainer.evaluate.sandbox.limits import Limits

OWN, MOUNTS = Path("/proc/self/cgroup"), Path("/proc/self/mounts")


def memory_parent(own: Path = OWN, mounts: Path = MOUNTS) -> Path | None:
    """Return the folder in which a memory cgroup can be made, or None."""
    try:
        root = next(parts[1] for line in mounts.read_text().splitlines() if (parts := line.split())[2] == "cgroup2")
        path = next(line[3:] for line in own.read_text().splitlines() if line.startswith("0::/"))
    except (OSError, StopIteration, IndexError):
        return None
    group = Path(root) / path.lstrip("/")
    for parent in (group, group.parent) if group != Path(root) else (group,):
        try:
            controllers = (parent / "cgroup.subtree_control").read_text().split()
        except OSError:
            continue
        # a process is moved by writing to the group that holds both places
        if "memory" in controllers and os.access(parent, os.W_OK) and os.access(parent / "cgroup.procs", os.W_OK):
            return parent
    return None


class MemoryGroup:
    """A cgroup for one sandbox."""

    def __init__(self, parent: Path, limits: Limits) -> None:
        self.path = parent / f"codelupe-{secrets.token_hex(8)}"
        self.path.mkdir()
        try:
            self._write("memory.max", limits.memory_bytes)
            self._write("memory.oom.group", 1)
            if (self.path / "memory.swap.max").exists():
                self._write("memory.swap.max", 0)
            if (self.path / "pids.max").exists():
                self._write("pids.max", limits.processes)
        except OSError:
            self.remove()
            raise

    def add(self, process: int) -> None:
        """Move a process into the group. Its children follow."""
        self._write("cgroup.procs", process)

    def remove(self) -> None:
        """Remove the group, whose processes have ended."""
        self.path.rmdir()

    def _write(self, name: str, value: int) -> None:
        (self.path / name).write_text(f"{value}\n")
