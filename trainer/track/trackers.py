"""W&B and TensorBoard behind one interface, off the critical path.

Each tracker runs in a daemon thread with a bounded queue, so it cannot stop, slow or crash a run. Entries beyond the
queue are dropped. Each kind of problem is reported once.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from trainer.recipe import Recipe
from trainer.run_dir import RunDirectory
from trainer.track.prediction import Prediction
from trainer.track.tensorboard_tracker import TensorBoardBackend
from trainer.track.wandb_tracker import WandbBackend, wandb_mode

QUEUE_LENGTH = 1000
FINISH_SECONDS = 10.0


class Backend(Protocol):
    """A tracker's operations. They run in its thread, and may raise or hang."""

    def open(self) -> str | None:
        """Returns what people should know, if it works otherwise than asked."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...
    def predictions(self, step: int, records: Sequence[Prediction]) -> None: ...
    def texts(self, step: int, values: Mapping[str, str]) -> None: ...
    def artifact(self, **what: Any) -> None: ...
    def close(self) -> None: ...
    def abandon(self) -> None:
        """Called from the run's thread if `close` takes too long. Releases what would keep the process alive."""


def open_trackers(
    recipe: Recipe,
    run_directory: RunDirectory,
    *,
    run_name: str,
    on_problem: Callable[[str, str], None],
    environment: Mapping[str, str] = os.environ,
    facts: Mapping[str, Any] | None = None,
    purge_step: int | None = None,
) -> Trackers:
    """Start the trackers enabled by recipe and environment, without waiting for them.

    Args:
        on_problem: called with a tracker's name and a message, from any thread, once per kind of problem.
        facts: what was decided beside the recipe: the run's number, its parent, its steps
        purge_step: the first step that a resumed run does again
    """
    workers: list[Worker] = []
    if mode := wandb_mode(environment):
        backend = WandbBackend(
            recipe, run_directory, run_name=run_name, mode=mode, environment=environment, facts=facts
        )
        workers.append(Worker("wandb", backend, on_problem, secret=environment.get("WANDB_API_KEY", "")))
    if recipe.tracking.tensorboard:
        board = TensorBoardBackend(run_directory.root / "tensorboard", purge_step=purge_step)
        workers.append(Worker("tensorboard", board, on_problem))
    return Trackers(workers)


class Trackers:
    """All trackers of a run. No method raises, and only `close` waits."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._workers = workers

    @property
    def has_table(self) -> bool:
        """Whether answers of several moments are shown side by side, as in W&B's table."""
        return any(worker.name == "wandb" for worker in self._workers)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log curves at a step, by names such as train/loss."""
        copied = dict(values)
        for worker in self._workers:
            worker.submit("log", lambda backend: backend.log(step, copied))

    def predictions(self, step: int, records: list[Prediction]) -> None:
        """Log sample answers at a step."""
        copied = tuple(records)
        for worker in self._workers:
            worker.submit("predictions", lambda backend: backend.predictions(step, copied))

    def texts(self, step: int, values: Mapping[str, str]) -> None:
        """Log short texts, by names such as gate/decision."""
        copied = dict(values)
        for worker in self._workers:
            worker.submit("texts", lambda backend: backend.texts(step, copied))

    def artifact(self, name: str, **what: Any) -> None:
        """Log an adapter's folder at W&B. TensorBoard has nothing for it."""
        for worker in self._workers:
            worker.submit("artifact", lambda backend: backend.artifact(name=name, **what))

    def close(self, seconds: float | None = None) -> None:
        """Wait for all trackers to finish, then abandon them.

        Args:
            seconds: None: ten, so that the end of a run is not delayed
        """
        seconds = FINISH_SECONDS if seconds is None else seconds
        began = time.monotonic()
        for worker in self._workers:
            worker.finish()
        for worker in self._workers:
            worker.wait(seconds, since=began)


Task = tuple[str, Callable[[Backend], None]]


class Worker:
    """One tracker's thread and queue."""

    def __init__(
        self, name: str, backend: Backend, on_problem: Callable[[str, str], None], *, secret: str = ""
    ) -> None:
        self.name = name
        self._backend = backend
        self._on_problem = on_problem
        self._secret = secret
        self._tasks: queue.Queue[Task] = queue.Queue(QUEUE_LENGTH)
        self._finishing = threading.Event()
        self._told: set[str] = set()
        self._abandoned = False
        self._thread = threading.Thread(target=self._run, name=f"tracker-{name}", daemon=True)
        self._thread.start()

    def submit(self, kind: str, action: Callable[[Backend], None]) -> None:
        """Queue an action. It is dropped if the queue is full or the tracker is closed."""
        if self._finishing.is_set():
            return
        try:
            self._tasks.put_nowait((kind, action))
        except queue.Full:
            self._report_once(
                "full", f"cannot keep up: {QUEUE_LENGTH} entries are waiting, and further ones are dropped"
            )

    def finish(self) -> None:
        """Accept no more actions. The thread ends when its queue is empty."""
        self._finishing.set()

    def wait(self, seconds: float, *, since: float) -> None:
        """Wait for the thread until so many seconds after `since`. Then it ends with the process."""
        self._thread.join(max(0.0, since + seconds - time.monotonic()))
        if self._thread.is_alive():
            self._report_once("finish", f"did not finish within {seconds:.0f} s. Its remaining entries are lost")
            self._abandoned = True
            self._attempt("abandon", lambda backend: backend.abandon())

    def _run(self) -> None:
        if not self._attempt("open", self._open):
            self._finishing.set()
            return
        while not (self._finishing.is_set() and self._tasks.empty()):
            try:
                kind, action = self._tasks.get(timeout=0.1)
            except queue.Empty:
                continue
            self._attempt(kind, action)
        self._attempt("close", lambda backend: backend.close())

    def _open(self, backend: Backend) -> None:
        if note := backend.open():
            self._report_once("open", note)

    def _attempt(self, kind: str, action: Callable[[Backend], None]) -> bool:
        try:
            action(self._backend)
        except Exception as error:  # noqa: BLE001 - a tracker may fail in any way, and the run continues
            self._report_once(kind, f"{kind} failed: {type(error).__name__}: {error}")
            return False
        return True

    def _report_once(self, kind: str, message: str) -> None:
        if kind in self._told or self._abandoned:
            return
        self._told.add(kind)
        self._on_problem(self.name, message.replace(self._secret, "***") if self._secret else message)
