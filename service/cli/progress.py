"""Progress of long commands: bars below the log in a terminal, and a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from service.progress import reported_to
from service.visible import on_one_line

LINE_SECONDS = 5.0


@contextmanager
def progress_shown(log_format: str, *, only_in_terminal: bool = False) -> Iterator[None]:
    """Show the progress of the block on stderr. A log in JSON gets none: it would not be JSON any more.

    Args:
        only_in_terminal: show nothing unless stdout and stderr are terminals
    """
    with ExitStack() as stack:
        if log_format != "json":
            if sys.stderr.isatty() and (sys.stdout.isatty() or not only_in_terminal):
                bars = Bars()
                stack.callback(bars.close)
                stack.enter_context(reported_to(bars))
            elif not only_in_terminal:
                stack.enter_context(reported_to(Lines()))
        yield


class Lines:
    """One line for each step at most every LINE_SECONDS."""

    draws = False

    def __init__(self) -> None:
        self._printed: dict[str, float] = {}

    def show(self, name: str, said: str, done: float, total: float | None, *, is_logged: bool) -> None:
        now = time.monotonic()
        if is_logged or not said or now - self._printed.setdefault(name, now) < LINE_SECONDS:
            return
        self._printed[name] = now
        print(f"{name}  {on_one_line(said)}", file=sys.stderr, flush=True)

    def end(self, names: tuple[str, ...]) -> None:
        for name in names:
            self._printed.pop(name, None)


class Bars:
    """One bar for each step in progress, at the bottom of the terminal. Without a step, nothing is drawn."""

    draws = True

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._replaced: tuple[TextIO, TextIO] | None = None

    def show(self, name: str, said: str, done: float, total: float | None, *, is_logged: bool) -> None:
        progress = self._progress or self._open()
        if name not in self._tasks:
            self._tasks[name] = progress.add_task(name, total=total, said="")
        progress.update(self._tasks[name], completed=done, total=total, said=on_one_line(said))

    def end(self, names: tuple[str, ...]) -> None:
        for name in names:
            if self._progress is not None and name in self._tasks:
                self._progress.remove_task(self._tasks.pop(name))
        if not self._tasks:
            self.close()

    def close(self) -> None:
        """Remove the bars, and lead what is printed to the terminal again."""
        if self._progress is None:
            return
        progress, self._progress, self._tasks = self._progress, None, {}
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, _Above):
                stream.finish()
        if self._replaced is not None:
            sys.stdout, sys.stderr = self._replaced
        progress.stop()

    def _open(self) -> Progress:
        columns = (
            TextColumn("{task.description}", markup=False), BarColumn(bar_width=30),
            TextColumn("{task.fields[said]}", markup=False), TimeElapsedColumn(),
        )  # fmt: skip
        console = Console(stderr=True, file=sys.stderr, highlight=False)
        progress = Progress(
            *columns, console=console, transient=True, refresh_per_second=5, redirect_stdout=False,
            redirect_stderr=False,
        )  # fmt: skip
        self._progress, self._replaced = progress, (sys.stdout, sys.stderr)
        if sys.stdout.isatty():
            sys.stdout = _Above(console, sys.stdout)
        sys.stderr = _Above(console, sys.stderr)
        progress.start()
        return progress


class _Above:
    """Stands for stdout or stderr while there are bars. Whole lines go above them, unbroken."""

    def __init__(self, console: Console, stream: TextIO) -> None:
        self._console, self._stream, self._begun = console, stream, ""

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._console.print(Text(line), soft_wrap=True)
        return len(text)

    def flush(self) -> None:
        """A line that has only begun waits for its end."""

    def finish(self) -> None:
        """Print a line that has no end."""
        if self._begun:
            self.write("\n")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
