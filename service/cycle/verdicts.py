"""Tells a verdict to the run's trackers, in a thread of its own: the service never fails because of them."""

from __future__ import annotations

import logging
import os
import queue
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from db.runs import Run
from service.cycle.launch import PROJECT, TRAINER, trainer_environment
from service.gate.judge import Verdict
from service.logs import event as log
from service.settings.home import Home
from service.settings.parsers import Price
from trainer.run_dir import RunDirectory, write_json

SEND_SECONDS = 900.0
"""After this time, a process that sends a verdict is killed. The trainer itself gives up after ten minutes."""
STOPPED_SECONDS, ENDED_SECONDS = 2.0, 30.0
"""How long a verdict that is being sent delays the end of the service: if it is asked to stop, and else."""
JOULES_PER_KWH = 3.6e6


def energy_cost(report: Mapping[str, Any], price: Price | None) -> dict[str, Any] | None:
    """Return what a run's energy cost. None without a card, or without a price."""
    joules = report.get("energy_joules")
    if joules is None or price is None:
        return None
    return {"amount": round(joules / JOULES_PER_KWH * price.per_kwh, 6), **asdict(price)}


def write_verdict(home: Home, run_id: int, record: Mapping[str, Any], cost: Mapping[str, Any] | None) -> None:
    """Write verdict.json (docs/run-directory.md). The database has the verdict already, and it decides."""
    directory = home.run(run_id)
    version = run_id if record["promote"] else None
    adapter = None if version is None else os.path.relpath(home.adapter(version), directory.root)
    write_json(
        directory.verdict,
        {
            "format": 1,
            "run_id": run_id,
            **record,
            "version": version,
            "adapter": adapter,
            "energy_cost": cost,
        },
    )


class VerdictSender:
    """Sends the verdicts of ended runs, one after the other."""

    def __init__(self, home: Home, secrets: Mapping[str, str], price: Price | None) -> None:
        self._home, self._secrets, self._price = home, secrets, price
        self._told: set[int] = set()
        """Each verdict is sent once by each service. What failed waits for the next start."""
        self._waiting: queue.SimpleQueue[Path | None] = queue.SimpleQueue()
        self._process: subprocess.Popen[str] | None = None
        self._killed = False
        self._thread: threading.Thread | None = None

    def tell(self, run_id: int, verdict: Verdict, report: Mapping[str, Any]) -> None:
        """Write a verdict that is in the database, and send it in the background."""
        self._write_and_send(run_id, verdict.as_record(), energy_cost(report, self._price))

    def catch_up(self, ended: list[Run]) -> None:
        """Send what an earlier service did not send: it was killed, or the tracker did not answer."""
        for run in ended:
            record = (run.report or {}).get("verdict")
            directory = self._home.run(run.run_id)
            told = run.run_id in self._told or directory.verdict_sent.exists()
            if record and run.ended_at and directory.report.exists() and not told:
                self._write_and_send(run.run_id, record, (run.report or {}).get("energy_cost"))

    def close(self, seconds: float) -> None:
        """Wait for what is being sent, then kill it. The next start sends it again."""
        self._waiting.put(None)
        if self._thread is not None:
            self._thread.join(seconds)
        self._killed = True
        if self._process is not None and self._process.poll() is None:
            self._process.kill()

    def _write_and_send(self, run_id: int, record: Mapping[str, Any], cost: Mapping[str, Any] | None) -> None:
        directory = self._home.run(run_id)
        self._told.add(run_id)
        try:
            write_verdict(self._home, run_id, record, cost)
        except (OSError, ValueError) as error:
            log("Verdict not written", level=logging.WARNING, run=run_id, reason=str(error))
            return
        if not is_tracked(directory):
            return
        self._waiting.put(directory.root)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="verdicts", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while (root := self._waiting.get()) is not None and not self._killed:
            try:
                self._send(root)
            except Exception as error:  # noqa: BLE001 - whatever happens here, the service goes on
                log("Verdict not sent", level=logging.WARNING, run=int(root.name), reason=str(error))

    def _send(self, root: Path) -> None:
        self._process = process = subprocess.Popen(
            [*TRAINER, "track", str(root)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd=PROJECT,
            env=trainer_environment(os.environ, self._secrets),
            start_new_session=True,
            text=True,
        )
        try:
            said = process.communicate(timeout=SEND_SECONDS)[1]
        except subprocess.TimeoutExpired:
            process.kill()
            said = f"{process.communicate()[1]}\nno answer within {SEND_SECONDS:.0f} s"
        if process.returncode == 0:
            log("Verdict sent to the trackers", run=int(root.name))
        elif not self._killed:
            reason = (said.strip().splitlines() or [f"it ended with code {process.returncode}"])[-1]
            log("Verdict not sent", level=logging.WARNING, run=int(root.name), reason=reason)


def is_tracked(directory: RunDirectory) -> bool:
    """Whether a tracker followed the run."""
    return (directory.root / "tensorboard").is_dir() or (directory.root / "wandb" / "id").exists()
