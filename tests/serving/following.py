"""Shared code for the tests of the follower."""

from __future__ import annotations

import time
from collections.abc import Callable

from service.publish.serving import Follower
from service.publish.vllm import Vllm
from service.settings.home import Home
from service.web.board import Board, Snapshot


class Followed:
    """A follower that polls on demand. It skips its retry delays unless `patient` is set."""

    def __init__(self, url: str, home: Home, key: str | None) -> None:
        self.board = Board(Snapshot(state="waiting"))
        self.follower = Follower(Vllm(url, key), home, self.board)

    def poll(self, current: int | None, *, patient: bool = False) -> str | None:
        """Poll once. Return the reported trouble."""
        self.board.update(current_version=current, current_known=True)
        if not patient:
            self.follower._retry_at = 0.0
        self.follower.poll(self.board.read())
        return self.board.read().troubles.get("serving")

    @property
    def served(self) -> int | None:
        return self.board.read().served_version


def wait_until(condition: Callable[[], bool], *, seconds: float = 30) -> None:
    """Poll until the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s"
        time.sleep(0.02)
