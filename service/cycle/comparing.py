"""The trainer's process that answers for `codelupe compare`. It ends when its stdin closes, so never outlives us."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from service.cycle.launch import PROJECT, TRAINER, trainer_environment
from service.errors import ServiceError

END_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How answers are drawn."""

    temperature: float = 0.0
    """0 takes the likeliest token each time."""
    top_p: float = 1.0
    max_tokens: int = 512
    seed: int = 42
    top_k: int = 0
    """0: all tokens may be drawn."""
    repetition_penalty: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one model answered."""

    model: str
    text: str
    tokens: int
    seconds: float
    finish: str
    """`stop`, `length` (max_tokens was reached) or `stopped` (by the user)."""

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens in a second, the prompt's reading included."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


class AnswerFailed(ServiceError):
    """One answer could not be made. The process goes on."""


class Answers:
    """One process with one base. Adapters are loaded when they are first asked."""

    def __init__(self, recipe_file: Path, adapter: Path | None, secrets: Mapping[str, str]) -> None:
        """Start the process and wait until the base is loaded.

        Raises:
            ServiceError: the base cannot be loaded. The process said why on stderr.
        """
        arguments = [] if adapter is None else ["--adapter", str(adapter)]
        self._process = subprocess.Popen(
            [*TRAINER, "compare", str(recipe_file), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=PROJECT,
            env=trainer_environment(os.environ, secrets),
            start_new_session=True,  # Ctrl-C stops an answer, not the process
        )
        self._asked = 0
        try:
            self.facts = self._next()
        except BaseException:
            self.close()
            raise

    def ask(
        self, prompt: str, *, model: str, folder: Path | None, settings: Settings, style: str | None,
        on_text: Callable[[str], None],
    ) -> Answer:  # fmt: skip
        """Ask one model, and give its text to `on_text` as it comes.

        Ctrl-C stops the answer, which is then returned. A second one raises KeyboardInterrupt.

        Raises:
            AnswerFailed: the adapter or the prompt cannot be used.
            ServiceError: the process ended.
        """
        self._asked += 1
        self._write(
            {
                "ask": self._asked, "model": None if folder is None else str(folder), "prompt": prompt, "style": style,
                **asdict(settings),
            }
        )  # fmt: skip
        with _interrupts(lambda: self._write({"stop": self._asked})):
            while True:
                record = self._next()
                match record["event"]:
                    case "text":
                        on_text(str(record["text"]))
                    case "answer":
                        return Answer(
                            model=model, text=record["text"], tokens=record["tokens"], seconds=record["seconds"],
                            finish=record["finish"],
                        )  # fmt: skip
                    case "error":
                        raise AnswerFailed(f"{model}: {record['message']}")

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _write(self, record: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(record) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise self._ended() from error

    def _next(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        found: dict[str, Any] = json.loads(line)
        return found

    def _ended(self) -> ServiceError:
        code = self._process.wait()
        error = ServiceError(f"the process that answers ended with code {code}. Its messages are above")
        error.exit_code = code if code in (2, 3) else 1
        return error


@contextmanager
def _interrupts(first: Callable[[], None]) -> Iterator[None]:
    """Call `first` at the first Ctrl-C in the block, and raise KeyboardInterrupt at the second.

    Raising at the first could lose half a line of what is being read.
    """
    seen = False

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        nonlocal seen
        if seen:
            raise KeyboardInterrupt
        seen = True
        first()

    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
