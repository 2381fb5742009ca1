"""Parses a text first in another process, with limits on memory and time. A text over a limit is not parsed here.

No grammar is safe: error recovery and constructs with many readings (`a<b`, `(a<b>)`, `a=>`) may need quadratic memory,
in C and Java over 2 GiB for 8 kB. Most of it is taken in one operation, which the binding cannot interrupt, and a
failed allocation ends the process. So another process has to try. The limits do not depend on the machine's load.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
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

MAX_ANSWERS = 100_000
"""Answers that are remembered, about 15 MB."""

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

    def passes(self, name: str, data: bytes) -> bool:
        """Whether a text can be parsed within the limits.

        Raises:
            TrainerError: the process cannot be started.
        """
        with self._lock:
            return self._tried(name, data)

    def answer(self, future: Future[bool], name: str, data: bytes) -> None:
        """Try the text of a future, unless it was cancelled meanwhile."""
        with self._lock:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(self._tried(name, data))
            except (TrainerError, OSError) as error:  # who asks for the answer gets it
                future.set_exception(error)

    def stop(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def _tried(self, name: str, data: bytes) -> bool:
        answer = self._answer(name, data)
        if answer is None and self._end() == -signal.SIGKILL:  # by none of the limits: the machine had no memory left
            answer = self._answer(name, data)
            if answer is None:
                self._end()
        return answer == _PASSED

    def _answer(self, name: str, data: bytes) -> bytes | None:
        """Return the answer of the process, or None if it ended instead."""
        process = self._running()
        assert process.stdin is not None and process.stdout is not None
        try:
            with suppress(BrokenPipeError):
                process.stdin.write(_REQUEST.pack(name.encode(), len(data)) + data)
                process.stdin.flush()
            return process.stdout.read(1) or None
        except BaseException:  # a request to stop: the answer that still comes must not be the next text's
            process.kill()
            self._end()
            raise

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            command = [sys.executable, "-m", "trainer.samples.trial"]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {"PYTHONFAULTHANDLER": ""}
            )
            assert self._process.stdout is not None
            if self._process.stdout.read(1) != _READY:
                code = self._process.wait()
                self._process = None
                raise TrainerError(
                    f"The process that tries to parse files did not start: `{' '.join(command)}` ended with exit code "
                    f"{code}. Run this command to see why."
                )
        return self._process

    def _end(self) -> int | None:
        """End the process, and return its exit code (negative: a signal)."""
        process, self._process = self._process, None
        if process is None:
            return None
        with suppress(BrokenPipeError):
            process.communicate()  # closes its input, which ends it
        return process.returncode


TRIAL = TrialProcess()
_AHEAD_TRIAL = TrialProcess()
"""Tries the texts that come next, so that no other text waits for them."""
_AHEAD: dict[tuple[str, bytes], Future[bool]] = {}
"""Answers for the texts that come next."""
_ANSWERS: dict[bytes, bool] = {}
"""Earlier answers by grammar and hash, because the builder `repo` parses each text twice."""


def passes(name: str, data: bytes) -> bool:
    """Whether a text can be parsed within the limits of memory and time. `name` is the grammar's name."""
    if len(data) <= SAFE_BYTES:
        return True
    key = name.encode() + hashlib.blake2b(data, digest_size=16).digest()
    if key not in _ANSWERS:
        ahead = _AHEAD.get((name, data))
        while len(_ANSWERS) >= MAX_ANSWERS:
            _ANSWERS.pop(next(iter(_ANSWERS)))
        _ANSWERS[key] = TRIAL.passes(name, data) if ahead is None else ahead.result()
    return _ANSWERS[key]


def look_ahead(texts: Iterable[tuple[str, bytes]]) -> None:
    """Start to try texts (grammar, text) while the caller works. The answers wait until the next call.

    Texts of the last call that nobody asked for are not tried any more.
    """
    _drop_ahead()
    _AHEAD.update((text, Future()) for text in texts if len(text[1]) > SAFE_BYTES)
    threading.Thread(target=_answer, args=(dict(_AHEAD),), daemon=True).start()


def _answer(ahead: dict[tuple[str, bytes], Future[bool]]) -> None:
    for text, future in ahead.items():
        _AHEAD_TRIAL.answer(future, *text)


def _drop_ahead() -> None:
    for future in _AHEAD.values():
        future.cancel()
    _AHEAD.clear()


def _forget() -> None:
    """Forget the process and the thread of the parent, which a fork does not have."""
    _AHEAD.clear()
    TRIAL.__init__()  # type: ignore[misc]
    _AHEAD_TRIAL.__init__()  # type: ignore[misc]


os.register_at_fork(after_in_child=_forget)
atexit.register(TRIAL.stop)
atexit.register(_AHEAD_TRIAL.stop)
atexit.register(_drop_ahead)  # runs first


# --- the process ----------------------------------------------------------------------------------------------


def main() -> None:
    """Answer requests until the input ends. A text that takes too much memory or time ends the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the trainer; this process ends with its input
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb", buffering=0)
    _limit_memory()  # where it cannot, this process does not start, instead of failing at every text
    answers.write(_READY)
    while header := _read(requests, _REQUEST.size):
        name, length = _REQUEST.unpack(header)
        passed = _parses(name.rstrip(b"\0").decode(), _read(requests, length))
        with suppress(BrokenPipeError):  # the trainer has ended, and so has the input
            answers.write(_PASSED if passed else _FAILED)


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
    taken = int(Path("/proc/self/statm").read_bytes().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + MAX_MEMORY_BYTES, hard))


if __name__ == "__main__":
    main()
