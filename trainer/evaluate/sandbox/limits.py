"""What a task may use, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass, fields

MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one task may use. Candidate and tests each have a sandbox of their own, with these limits."""

    wall_seconds: float = 10.0
    """From the moment when both sandboxes have started."""
    cpu_seconds: int = 10
    """Of each process."""
    memory_bytes: int = 512 * MIB
    """Address space of each process. With a cgroup, also the memory of the whole sandbox."""
    processes: int = 8
    """Processes and threads of a sandbox. bubblewrap's own counts as one."""
    open_files: int = 64
    """Of each process."""
    file_bytes: int = 16 * MIB
    """Of each file."""
    tmp_bytes: int = 16 * MIB
    """All files in /tmp together, which are in memory."""
    output_bytes: int = MIB
    """What a sandbox may print."""
    answer_bytes: int = 16 * MIB
    """What the candidate may answer to all calls together."""

    def __post_init__(self) -> None:
        for item in fields(self):
            if not getattr(self, item.name) > 0:
                raise ValueError(f"{item.name} must be greater than 0, not {getattr(self, item.name)}")
        if self.processes < 2 or self.open_files < 16:
            raise ValueError("a sandbox needs at least 2 processes and 16 open files")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a task ended."""

    passed: bool
    reason: str
    """Why it did not pass. Empty if it passed."""
    seconds: float
    """Wall time, including the start of the sandboxes."""
