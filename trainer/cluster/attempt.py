"""One attempt to train a run on a cluster: a Ray Train run with a fixed number of workers. (no torch)"""

from __future__ import annotations

import logging
import secrets
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.cluster.desk import Order, Word
from trainer.cluster.storage import Storage, bring_results, send_run
from trainer.cluster.worker import train_rank
from trainer.ranks import CAUSES, POLL_SECONDS, SETTLE_SECONDS, STOP_SECONDS, cause_of
from trainer.run_dir import RunDirectory, write_json
from trainer.stop import StopRequest, write_stderr

SILENT_SECONDS = 15.0
"""After another rank has failed: a rank that says nothing for so long is lost, also if Ray does not know yet."""
ANSWER_SECONDS = 30.0
"""How long the desk, which is on this machine, may take to answer."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How an attempt ended."""

    code: int | None
    """Exit code of the run. None: a machine was lost, and the run can go on."""
    rank: int = 0
    """The rank that the exit code is from."""
    why: str = ""
    """What was lost."""
    complete: bool = False
    """Whether all ranks have said that they ended."""


class Attempt:
    """Starts the ranks, and follows them to their end."""

    def __init__(
        self, ray: Any, desk: Any, directory: RunDirectory, name: str, number: int, processes: int,
        resources: Mapping[str, float], environment: Mapping[str, str], folder: str, storage: str | None,
    ) -> None:  # fmt: skip
        self._ray, self._desk, self._directory = ray, desk, directory
        self._number, self._processes, self._environment = number, processes, environment
        self._words: dict[int, Word] = {}
        """The first word of each rank."""
        self._codes: dict[int, int] = {}
        self._heard_at: dict[int, float] = {}
        self._failure: BaseException | None = None
        """Why Ray Train ended, if it failed."""
        self._start_name = f"{int(time.time())}-{secrets.token_hex(4)}"
        self._storage = None if storage is None else Storage(storage, name)
        config = {"name": name, "attempt": number, "directory": str(directory.root), "storage": storage,
                  "start": self._start_name}  # fmt: skip
        self._thread = threading.Thread(target=self._fit, args=[config, resources, folder], daemon=True)

    def run(self, stop: StopRequest) -> Ended:
        """Start, and wait for the end of all ranks."""
        if self._storage is not None:
            send_run(self._storage, self._directory, self._start_name)
        self._give("wait")
        self._thread.start()
        failed_at: float | None = None
        while True:
            self._listen(asked=failed_at is not None and time.monotonic() > failed_at + SETTLE_SECONDS)
            if len(self._codes) == self._processes:
                self._thread.join(ANSWER_SECONDS)
                self._bring()
                code, rank = cause_of(self._codes)
                return Ended(code=code, rank=rank, complete=True)
            if failed_at is None and any(self._codes.values()):
                failed_at = time.monotonic()
            since = 0.0 if failed_at is None else time.monotonic() - failed_at
            if not self._thread.is_alive() or (since > SETTLE_SECONDS and self._silent()):
                return self._lost()
            if since > SETTLE_SECONDS + STOP_SECONDS:
                self._give("kill")
            elif since > SETTLE_SECONDS or stop.reason is not None:
                self._give("stop")
            time.sleep(POLL_SECONDS)

    def _fit(self, config: dict[str, Any], resources: Mapping[str, float], folder: str) -> None:
        """Run Ray Train to its end, in a thread. Lost machines are the driver's business, which knows the recipe."""
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

        logging.getLogger("ray.train").setLevel(logging.ERROR)
        scaling = ScalingConfig(
            num_workers=self._processes, resources_per_worker=dict(resources), use_gpu="GPU" in resources
        )
        running = RunConfig(
            name=config["name"], storage_path=folder,
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
        )  # fmt: skip
        try:
            DataParallelTrainer(train_rank, train_loop_config=config, scaling_config=scaling, run_config=running).fit()
        except BaseException as error:  # noqa: BLE001  (the thread's boundary: run() says it)
            self._failure = error

    def _listen(self, *, asked: bool) -> None:
        """Take the ranks' words. What ends because it was asked to is no cause."""
        for word in self._ray.get(self._desk.take.remote(), timeout=ANSWER_SECONDS):
            if word.attempt != self._number:
                continue
            self._heard_at[word.rank] = time.monotonic()
            sys.stdout.write("".join(word.lines))
            if word.events:
                with self._directory.events.open("a", encoding="utf-8") as file:
                    file.write(word.events)
            if word.code is not None and word.rank not in self._codes:
                self._codes[word.rank] = 0 if asked else word.code
            if word.rank not in self._words:
                self._words[word.rank] = word
                if len(self._words) == self._processes:
                    self._start()
        sys.stdout.flush()

    def _start(self) -> None:
        """All ranks are there: note their machines, and let them train."""
        machines = {word.node: word.meeting.rpartition(":")[0] for word in self._words.values()}
        write_json(self._directory.machines, {"machines": machines})
        self._give("go")

    def _give(self, kind: Any) -> None:
        meeting = self._words[0].meeting if 0 in self._words else ""
        environment = self._environment if kind == "go" else {}
        order = Order(kind=kind, attempt=self._number, meeting=meeting, environment=environment)
        self._ray.get(self._desk.give.remote(order), timeout=ANSWER_SECONDS)

    def _bring(self) -> None:
        """Bring back what the ranks have sent to the storage, if there is one."""
        if self._storage is not None:
            bring_results(self._storage, self._directory, self._start_name)

    def _silent(self) -> bool:
        now = time.monotonic()
        return any(
            now - self._heard_at[rank] > SILENT_SECONDS for rank in range(self._processes) if rank not in self._codes
        )

    def _lost(self) -> Ended:
        """Ray Train has ended, or a rank is silent. A code that says why a rank failed is the cause."""
        self._give("kill")
        self._bring()
        if self._directory.report.exists():  # the first rank was done
            return Ended(code=0)
        if any(code in CAUSES for code in self._codes.values()):
            code, rank = cause_of(self._codes)
            return Ended(code=code, rank=rank)
        if len(self._words) < self._processes:
            write_stderr(f"Ray Train: {self._failure}")
            return Ended(code=None, why=f"only {len(self._words)} of {self._processes} workers of Ray started")
        lost = sorted(set(range(self._processes)) - set(self._codes))
        machines = sorted({self._words[rank].meeting.rpartition(":")[0] for rank in lost})
        return Ended(
            code=None,
            why=f"process {', '.join(map(str, lost))} of {self._processes} is lost, with {', '.join(machines)}",
        )
