"""Parses a text first in a process of its own, with limits on memory and time. A text that exceeds them is not parsed here.

No grammar is safe: error recovery and grammars with many readings (`a<b`, `(a<b>)`, `a=>`) may need quadratic memory, in
C and Java over 2 GiB for 8 kB. Most of it is taken in one operation, which the binding cannot interrupt, and a failed
allocation ends the process. So another process has to try. Its answer depends on the text, not on the machine's load.
"""

from __future__ import annotations

import atexit
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from typing import IO

from trainer.errors import TrainerError

SAFE_BYTES = 1024
"""Shorter texts need no trial. The worst text found takes 50 MB at this length."""

MAX_MEMORY_BYTES = 512 << 20
"""Memory that a parse may take. Ordinary files take 0.03 to 0.2 kB per byte, so up to 0.2 GiB at the length limit."""

MAX_STEPS_PER_BYTE = 50
"""Operations of the parser per byte of text. Ordinary files need up to 3, repeats such as `a<a>(a<a>(…` up to 16."""

MAX_CPU_SECONDS = 60
"""Processor time of a parse. It only ends what neither memory nor operations limit; no such text is known."""

STEPS_PER_CALL = 100
"""The parser reports its progress after this many operations."""

_REQUEST = struct.Struct("<16sI")
"""Name of the grammar, and length of the text that follows."""
_READY, _PASSED, _FAILED = b"R", b"1", b"0"


class TrialProcess:
    """The process that tries texts. It is started again after a text that ended it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def passes(self, name: str, data: bytes) -> bool:
        """Whether a text can be parsed within the limits.

        Raises:
            TrainerError: the process cannot be started.
        """
        with self._lock:
            process = self._running()
            assert process.stdin is not None and process.stdout is not None
            with suppress(BrokenPipeError):
                process.stdin.write(_REQUEST.pack(name.encode(), len(data)) + data)
                process.stdin.flush()
            answer = process.stdout.read(1)
            if not answer:
                self._end()
            return answer == _PASSED

    def stop(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def _running(self) -> subprocess.Popen[bytes]:
        """Return the process. A fork of its owner starts its own one."""
        if self._process is None or self._owner != os.getpid():
            command = [sys.executable, "-m", "trainer.samples.trial"]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {"PYTHONFAULTHANDLER": ""}
            )
            self._owner = os.getpid()
            assert self._process.stdout is not None
            if self._process.stdout.read(1) != _READY:
                code = self._process.wait()
                self._process = None
                raise TrainerError(
                    f"The process that tries to parse files did not start: `{' '.join(command)}` ended with exit code "
                    f"{code}. Run this command to see why."
                )
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        with suppress(BrokenPipeError):
            process.communicate()  # closes its input, which ends it


TRIAL = TrialProcess()
atexit.register(TRIAL.stop)


def passes(name: str, data: bytes) -> bool:
    """Whether a text can be parsed within the limits of memory and time. `name` is the grammar's name."""
    return len(data) <= SAFE_BYTES or TRIAL.passes(name, data)


# --- the process ----------------------------------------------------------------------------------------------


def main() -> None:
    """Answer requests until the input ends. A text that takes too much memory or time ends the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the trainer; this process ends with its input
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb", buffering=0)
    answers.write(_READY)
    while header := requests.read(_REQUEST.size):
        name, length = _REQUEST.unpack(header)
        answers.write(_PASSED if _parses(name.rstrip(b"\0").decode(), _read(requests, length)) else _FAILED)


def _read(requests: IO[bytes], length: int) -> bytes:
    data = requests.read(length)
    if len(data) < length:
        raise SystemExit  # the trainer has ended
    return data


def _parses(name: str, data: bytes) -> bool:
    from trainer.samples.syntax import parser_of  # here, because syntax imports this module

    parser = parser_of(name)
    max_calls = 100 + len(data) * MAX_STEPS_PER_BYTE // STEPS_PER_CALL
    calls = 0

    def is_over(_place: int, _has_error: bool) -> bool:
        nonlocal calls
        calls += 1
        return calls > max_calls

    _limit_memory()
    signal.setitimer(signal.ITIMER_PROF, MAX_CPU_SECONDS)
    try:
        parser.parse(lambda place, _point: data[place:], progress_callback=is_over)
    except ValueError:  # stopped by `is_over`
        parser.reset()
        return False
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return True


def _limit_memory() -> None:
    """Limit the memory that this process may take in addition to what it has."""
    with open("/proc/self/statm", "rb") as statm:
        taken = int(statm.read().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + MAX_MEMORY_BYTES, hard))


if __name__ == "__main__":
    main()
