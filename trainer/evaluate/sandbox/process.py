"""Starts one process in a sandbox, and kills everything in it.

    bwrap (outside) ─ bwrap (process 1 inside) ─ Python ─ …

Process 1 waits until this side holds it and has put it into its cgroup. When it dies, the kernel kills all processes of
its namespace.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from io import FileIO
from pathlib import Path
from typing import Any

from trainer.errors import UnusableInput
from trainer.evaluate.sandbox.bubblewrap import Sandbox, command_line, guest_files, identity
from trainer.evaluate.sandbox.cgroup import MemoryGroup
from trainer.evaluate.sandbox.entry import JOB
from trainer.evaluate.sandbox.limits import Limits
from trainer.evaluate.sandbox.seccomp import filter_program

START_SECONDS = 60.0
"""A sandbox that has not started by then is a fault of the machine, not of the candidate."""

INSIDE = ("entry", "wire", "candidate_side", "tests_side")
"""Modules of this package that run inside."""
MODULES = {
    f"/sandbox/trainer/evaluate/sandbox/{name}.py": Path(__file__).with_name(f"{name}.py").read_bytes()
    for name in INSIDE
}
PROGRAM = "import sys; sys.path[0] = '/sandbox'; from trainer.evaluate.sandbox.{} import main; main()"


class Guest:
    """A process in a sandbox. Close it, or use it as a context: nothing of it is left afterwards."""

    def __init__(
        self, sandbox: Sandbox, limits: Limits, side: str, job: Mapping[str, Any], ends: Mapping[str, FileIO]
    ) -> None:
        """Start `side` (candidate_side or tests_side) with a job. It gets the ends of pipes, which are closed here.

        Raises:
            UnusableInput: the sandbox does not start.
        """
        self._limits = limits
        self._open = ExitStack()
        try:
            self._start(sandbox, side, job, ends)
        except (OSError, subprocess.SubprocessError) as error:
            self.close()
            raise UnusableInput(f"the sandbox did not start ({error})") from error
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait_started(self) -> None:
        """Wait until the interpreter runs, before it has touched anything that the model wrote.

        Raises:
            UnusableInput: it does not run.
        """
        if not readable(self._started, START_SECONDS) or not self._started.read(1):
            raise self._failed("the sandbox did not start")

    def close(self) -> None:
        """Kill everything in the sandbox, wait until it is dead, and close what it used."""
        self._open.close()

    def _start(self, sandbox: Sandbox, side: str, job: Mapping[str, Any], ends: Mapping[str, FileIO]) -> None:
        group = self._group(sandbox)
        self.output, write_output = pipe(self._open)
        self._started, write_started = pipe(self._open)
        information, write_information = pipe(self._open)
        read_go, go = pipe(self._open)
        numbers = {name: end.fileno() for name, end in {**ends, "started": write_started}.items()}
        content = json.dumps({**job, **numbers, "rlimits": _rlimits(self._limits)}).encode()
        files = {path: self._data(text) for path, text in {**MODULES, str(JOB): content}.items()}
        program = self._data(filter_program())
        options = [*guest_files(files), "--seccomp", str(program)]
        options += ["--info-fd", str(write_information.fileno()), "--block-fd", str(read_go.fileno())]
        self._outer = subprocess.Popen(
            command_line(sandbox, self._limits, options, ["-c", PROGRAM.format(side)]),
            stdout=write_output,
            stderr=write_output,
            pass_fds=[*numbers.values(), *files.values(), program, write_information.fileno(), read_go.fileno()],
            **identity(),
        )
        self._open.callback(self._end_outer)
        # The end of a side is noticed only when nobody else holds its ends.
        for end in (*ends.values(), write_output, write_started, write_information, read_go):
            end.close()
        self._hold_first_process(information, group)
        with suppress(BrokenPipeError):  # it ended meanwhile: wait_started says so
            go.write(b"1")

    def _hold_first_process(self, information: FileIO, group: MemoryGroup | None) -> None:
        """Keep a handle to kill process 1, which waits, and move it into its cgroup."""
        text = b""
        while not text.rstrip().endswith(b"}"):
            if not readable(information, START_SECONDS) or not (part := information.read(4096)):
                raise self._failed("bubblewrap ended")
            text += part
        first = int(json.loads(text)["child-pid"])
        try:
            handle = os.pidfd_open(first)
        except OSError as error:
            raise self._failed("bubblewrap ended") from error
        self._open.callback(_kill, handle)
        if group:
            try:
                group.add(first)
            except OSError as error:
                raise UnusableInput(f"a sandbox cannot be moved into the cgroup {group.path} ({error})") from error

    def _group(self, sandbox: Sandbox) -> MemoryGroup | None:
        if not sandbox.cgroup:
            return None
        try:
            group = MemoryGroup(sandbox.cgroup, self._limits)
        except OSError as error:
            raise UnusableInput(f"no memory cgroup can be made in {sandbox.cgroup} ({error})") from error
        self._open.callback(group.remove)
        return group

    def _data(self, content: bytes) -> int:
        """A descriptor from which bubblewrap reads content."""
        file = self._open.enter_context(os.fdopen(os.memfd_create("guest"), "w+b", buffering=0))
        file.write(content)
        file.seek(0)
        return file.fileno()

    def _end_outer(self) -> None:
        self._outer.kill()
        self._outer.wait()

    def _failed(self, what: str) -> UnusableInput:
        text = self.output.read(4096) if readable(self.output, 1) else b""
        reason = " ".join(text.decode(errors="replace").split()) or "no reason given"
        return UnusableInput(f"{what} ({reason}). The machine may be short of memory or processes")


def pipe(owner: ExitStack) -> tuple[FileIO, FileIO]:
    """Return the reading and the writing end of a pipe. `owner` closes what is still open."""
    read_from, write_to = os.pipe()
    return (
        owner.enter_context(FileIO(read_from, "rb")),
        owner.enter_context(FileIO(write_to, "wb")),
    )


def readable(file: FileIO, seconds: float) -> bool:
    """Wait until a read does not block."""
    poll = select.poll()
    poll.register(file, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _kill(handle: int) -> None:
    """Kill process 1 and wait: it counts as ended only when its whole namespace has."""
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(handle, signal.SIGKILL)
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    poll.poll()
    os.close(handle)


def _rlimits(limits: Limits) -> dict[str, int]:
    return {
        "RLIMIT_CPU": limits.cpu_seconds,
        "RLIMIT_AS": limits.memory_bytes,
        "RLIMIT_FSIZE": limits.file_bytes,
        "RLIMIT_NPROC": limits.processes,
        "RLIMIT_NOFILE": limits.open_files,
        "RLIMIT_CORE": 0,
        "RLIMIT_MEMLOCK": 0,
        "RLIMIT_MSGQUEUE": 0,
    }
