"""Reads the files of a folder in several processes. Their order and their rows are those of a single process."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from db.files import NewFile
from service.errors import PreconditionError, ServiceError
from service.intake.fields import stored
from service.intake.folders import new_file
from service.intake.formats import PassedOver
from service.intake.records import Given

FEW_FILES = 1000
"""So many files are read before other processes are started, which takes about a second."""
BATCH_FILES = 32
"""Files that a process reads at a time."""
BATCHES_AHEAD = 4
"""Batches of each process that are read before they are needed. They are in memory."""


@dataclass(frozen=True, kw_only=True)
class Unread:
    """A file that is yet to be read."""

    path: Path
    given: Given
    repository: str
    name: str
    commit: str | None

    def read(self) -> NewFile | PassedOver:
        """Return the file as a row, or why it is passed over."""
        found = new_file(self.path, self.given, repository=self.repository, name=self.name, commit=self.commit)
        return PassedOver(name=stored(self.name), reason=found) if isinstance(found, str) else found


Item = NewFile | PassedOver | Unread
Result = NewFile | PassedOver


def default_jobs() -> int:
    """The cores that this process may use, less one for the process that writes and one for Postgres.

    With as many processes as cores, a drop on two cores was slower than with one (docs/scaling.md).
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores - 2)


def read_in_order(items: Iterable[Item], jobs: int) -> Iterator[Result]:
    """Yield each item as it is read, in their order. After the first files, `jobs` processes read.

    An error of `items` is raised after all that came before it.

    Raises:
        PreconditionError: one of the processes was killed.
    """
    read, waiting = 0, iter(items)
    for item in waiting:
        yield item.read() if isinstance(item, Unread) else item
        read += isinstance(item, Unread)
        if jobs > 1 and read >= FEW_FILES:
            break
    else:
        return
    # Not fork: this process has threads.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, mp_context=context)
    _start(pool, jobs)
    try:
        yield from _read_ahead(pool, waiting, most=jobs * BATCHES_AHEAD)
    except BrokenProcessPool as error:
        raise PreconditionError(
            f"one of {jobs} processes that read files was killed, perhaps because memory ran out. What is inserted "
            "stays. Run the command again, with --jobs 1 if it happens again"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start(pool: ProcessPoolExecutor, jobs: int) -> None:
    """Start the processes so that they ignore Ctrl-C. It is for this process, which ends them."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may change what a signal does
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        for _ in range(jobs):  # each starts a process, because none is idle yet
            pool.submit(_read, [])
    finally:
        signal.signal(signal.SIGINT, before)


def _read_ahead(pool: ProcessPoolExecutor, items: Iterator[Item], *, most: int) -> Iterator[Result]:
    """Yield the items in their order, with up to `most` batches in the making."""
    batches: deque[Future[list[Result]]] = deque()
    failed: Exception | None = None
    while True:
        batch: list[Item] = []
        try:
            batch.extend(itertools.islice(items, BATCH_FILES))
        except (ServiceError, OSError, ValueError) as error:
            failed = error  # raised when all before it is inserted
        if batch:
            batches.append(pool.submit(_read, batch))
        if failed or not batch:
            break
        if len(batches) >= most:
            yield from batches.popleft().result()
    while batches:
        yield from batches.popleft().result()
    if failed is not None:
        raise failed


def _read(batch: list[Item]) -> list[Result]:
    return [item.read() if isinstance(item, Unread) else item for item in batch]
