"""Sends what rank 0 writes, while it trains, to where the driver finds it: a run without a shared folder. (no torch)"""

from __future__ import annotations

import threading
from collections.abc import Callable

from trainer.cluster.storage import Storage, send_checkpoints, send_results
from trainer.errors import ClusterFailed
from trainer.run_dir import RunDirectory

EVERY_SECONDS = 1.0


class Courier:
    """Sends checkpoints in a thread, because they may be large, and hands out new events."""

    def __init__(self, storage: Storage, directory: RunDirectory, start: str, is_heard: Callable[[], bool]) -> None:
        self._storage, self._directory, self._start, self._is_heard = storage, directory, start, is_heard
        self._offset = directory.events.stat().st_size if directory.events.exists() else 0  # those of earlier starts
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._send, name="checkpoints", daemon=True)
        self._thread.start()

    def events(self) -> str:
        """Return the lines of events.jsonl since the last call."""
        try:
            with self._directory.events.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return ""
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return whole.decode("utf-8", "replace")

    def finish(self) -> str | None:
        """Send all results. Returns what went wrong, or None."""
        self._ended.set()
        self._thread.join()
        try:
            if self._is_heard():  # else another start may train this run
                send_results(self._storage, self._directory, self._start)
        except ClusterFailed as error:
            return str(error)
        return None

    def _send(self) -> None:
        while not self._ended.wait(EVERY_SECONDS):
            try:
                if self._is_heard():
                    send_checkpoints(self._storage, self._directory)
            except ClusterFailed:  # the next time, or finish() says it
                continue
