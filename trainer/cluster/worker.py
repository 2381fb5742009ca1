"""What a worker of Ray Train does: it starts one rank as a process, and passes on what is said. (no torch)

The rank is a process of its own, `python -m trainer run`, as on one machine. So exit codes, stopping and memory are
the same, and a Ray worker holds neither torch nor a GPU's memory. The rank's stdin is a pipe from this worker. When the
worker ends for any reason, the kernel closes the pipe, and the rank ends.
"""

from __future__ import annotations

import fcntl
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from trainer.cluster.courier import Courier
from trainer.cluster.desk import Order, Word
from trainer.cluster.storage import Storage, fetch_run
from trainer.errors import Stopped
from trainer.ranks import ALONE_SECONDS, LOCK_HELD, STOP_SECONDS
from trainer.run_dir import RunDirectory

NAMESPACE = "codelupe"
POLL_SECONDS = 0.2
UNHEARD_SECONDS = 10.0
"""A rank whose worker cannot reach the desk for so long is asked to stop."""
GONE_SECONDS = UNHEARD_SECONDS + max(STOP_SECONDS, ALONE_SECONDS) + 5.0
"""After this time without a word from a machine, none of its ranks runs."""
PROJECT = Path(__file__).resolve().parents[2]


def train_rank(config: Mapping[str, Any]) -> None:
    """Run one rank to its end. Ray Train calls this on each worker.

    Args:
        config: `name` of the run in the cluster, `attempt`, `directory`, `storage` (URL or None), `start` (names the
            attempt among those of all drivers)
    """
    import ray
    from ray.train import get_context

    context = get_context()
    node, address = ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address()
    first = Word(
        attempt=config["attempt"], rank=context.get_world_rank(), node=node, meeting=f"{address}:{free_port(address)}"
    )
    line = Line(ray, config["name"], first)
    order = line.say()
    while order.kind == "wait":
        time.sleep(POLL_SECONDS)
        order = line.say()
    if order.kind != "go":
        line.say(code=Stopped.exit_code)
        return
    variables = rank_variables(
        order,
        context.get_world_rank(),
        context.get_world_size(),
        context.get_local_rank(),
        context.get_local_world_size(),
    )
    with ranks_lock(config["name"]).open("a") as held:  # until the results are sent, too
        fcntl.flock(held, fcntl.LOCK_SH)  # shared by the ranks of a machine. The process inherits it
        directory, courier = config["directory"], None
        if config["storage"] is not None:
            storage, start = Storage(config["storage"], config["name"]), config["start"]
            directory = str(fetch_run(storage, config["name"], start))
            if first.rank == 0:
                courier = Courier(storage, RunDirectory(Path(directory)), start, line.is_heard)
        run_rank(line, directory, variables, held.fileno(), courier)


def run_rank(line: Line, directory: str, variables: Mapping[str, str], lock: int, courier: Courier | None) -> None:
    """Start the process, and follow it to its end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "trainer", "run", directory],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=PROJECT,
        env={**os.environ, **variables}, pass_fds=(lock,), text=True, errors="replace",
    )  # fmt: skip
    output: queue.SimpleQueue[str] = queue.SimpleQueue()
    reader = threading.Thread(target=_read, args=[process.stdout, output], daemon=True)
    reader.start()
    asked_at: float | None = None
    try:
        while process.poll() is None:
            order = line.say(_lines(output), courier.events() if courier else "")
            if order.kind == "kill" or (asked_at is not None and _late(asked_at, line)):
                process.kill()
            elif order.kind == "stop" and asked_at is None:
                process.terminate()
                asked_at = time.monotonic()
            time.sleep(POLL_SECONDS)
        reader.join(2)
        before_listening = asked_at is not None and process.returncode == -signal.SIGTERM
        code = Stopped.exit_code if before_listening else process.returncode
        problem = courier.finish() if courier else None
        lines = (*_lines(output), *([f"{problem}\n"] if problem else []))
        line.say_last(lines, courier.events() if courier else "", code if problem is None else 1)
    finally:
        process.kill()
        process.wait()


def _late(asked_at: float, line: Line) -> bool:
    """Whether a process that was asked to stop without a driver must be killed. A driver sends its own order."""
    return line.unheard_for() > UNHEARD_SECONDS and time.monotonic() > asked_at + STOP_SECONDS


class Line:
    """A rank's line to the desk."""

    def __init__(self, ray: Any, name: str, first: Word) -> None:
        self._ray, self._name, self._first = ray, name, first
        self._desk: Any = None
        self._heard_at = time.monotonic()
        self._last = Order(kind="wait", attempt=first.attempt)
        self._unsaid = first
        """What the next word is going to say."""
        self._word: Word | None = None
        """A word that has not been answered yet."""

    def unheard_for(self) -> float:
        """Return the time in seconds since the desk last answered."""
        return time.monotonic() - self._heard_at

    def is_heard(self) -> bool:
        """Whether the driver can be reached."""
        return self.unheard_for() < UNHEARD_SECONDS

    def say_last(self, lines: tuple[str, ...], events: str, code: int) -> None:
        """Say everything, and then the exit code: the driver listens no longer. Try until the desk has both."""
        self.say(lines, events)
        while (self._word is not None or self._unsaid.lines or self._unsaid.events) and self.is_heard():
            time.sleep(POLL_SECONDS)
            self.say()
        self.say(code=code)
        while self._word is not None and self.is_heard():
            time.sleep(POLL_SECONDS)
            self.say(code=code)

    def say(self, lines: tuple[str, ...] = (), events: str = "", code: int | None = None) -> Order:
        """Say a word and return the order. Without an answer for a while, the order is to stop."""
        said = self._unsaid
        self._unsaid = replace(said, lines=said.lines + lines, events=said.events + events, code=code)
        if self._word is None:
            self._word = self._unsaid
            self._unsaid = replace(self._first, number=self._word.number + 1)
        try:
            if self._desk is None:
                self._desk = self._ray.get_actor(self._name, namespace=NAMESPACE)
            self._last = self._ray.get(self._desk.hear.remote(self._word), timeout=UNHEARD_SECONDS / 2)
            self._heard_at, self._word = time.monotonic(), None
        except (self._ray.exceptions.RayError, ValueError):  # no such actor: the driver has ended
            self._desk = None
            if self.unheard_for() > UNHEARD_SECONDS:
                return Order(kind="stop", attempt=self._first.attempt)
        return self._last


def rank_variables(order: Order, rank: int, number: int, local_rank: int, local_number: int) -> dict[str, str]:
    """Return the variables of a rank: torchrun's, and those of the driver."""
    host, _, port = order.meeting.rpartition(":")
    threads = max(1, len(os.sched_getaffinity(0)) // local_number)
    if len(os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")) == 1:  # Ray shows each worker its own GPU alone
        local_rank = 0
    return {
        "OMP_NUM_THREADS": str(threads),  # Ray sets it to 1, the CPUs that a worker reserves
        **order.environment,
        "RANK": str(rank),
        "WORLD_SIZE": str(number),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(local_number),
        "MASTER_ADDR": host,
        "MASTER_PORT": port,
        LOCK_HELD: "1",
    }


def ranks_lock(name: str) -> Path:
    """Return the file on this machine that the ranks of a run lock. It is local: a shared folder may not know locks."""
    return Path(tempfile.gettempdir()) / f"{name}.{os.getuid()}.lock"


def wait_for_ranks(name: str, seconds: float) -> bool:
    """Return whether all ranks of earlier starts on this machine have ended. The driver runs this on each machine."""
    end = time.monotonic() + seconds
    with ranks_lock(name).open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if time.monotonic() > end:
                    return False
                time.sleep(POLL_SECONDS)


def free_port(address: str) -> int:
    """Return a port of this machine that is free now."""
    with socket.socket() as sock:
        sock.bind((address, 0))
        return int(sock.getsockname()[1])


def _read(stream: IO[str] | None, output: queue.SimpleQueue[str]) -> None:
    assert stream is not None
    for text in stream:
        output.put(text)


def _lines(output: queue.SimpleQueue[str]) -> tuple[str, ...]:
    lines = []
    while not output.empty():
        lines.append(output.get())
    return tuple(lines)
