"""How far long steps are. Whoever does one reports it, and a command decides how it is shown, as with logging."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Reporter(Protocol):
    """Shows long steps."""

    @property
    def draws(self) -> bool:
        """Whether it draws on the terminal, so that nobody else may write there."""

    def show(self, name: str, said: str, done: float, total: float | None, *, is_logged: bool) -> None: ...
    def end(self, names: tuple[str, ...]) -> None: ...


class _Nowhere:
    draws = False

    def show(self, name: str, said: str, done: float, total: float | None, *, is_logged: bool) -> None:
        pass

    def end(self, names: tuple[str, ...]) -> None:
        pass


_reporters: list[Reporter] = [_Nowhere()]


def report(
    name: str, said: str = "", done: float = 0.0, total: float | None = None, *, is_logged: bool = False
) -> None:
    """Report how far a step is.

    Args:
        name: such as `training`
        said: its numbers, such as `37/120 steps, loss 1.234`
        total: None if nobody knows it
        is_logged: whether the log says the same
    """
    _reporters[-1].show(name, said, done, total, is_logged=is_logged)


def is_drawn() -> bool:
    """Whether steps are drawn on the terminal. Whoever starts a process must not let it write there by itself."""
    return _reporters[-1].draws


def ended(*names: str) -> None:
    """Report that steps have ended. Those that never began are ignored."""
    _reporters[-1].end(names)


@contextmanager
def reported_to(reporter: Reporter) -> Iterator[None]:
    """Send reports of the block to a reporter."""
    _reporters.append(reporter)
    try:
        yield
    finally:
        _reporters.remove(reporter)
