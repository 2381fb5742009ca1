"""Starts the process that examines a candidate, before the run has ended if that is near: its imports take seconds."""

from __future__ import annotations

import contextlib

from service.cycle.launch import TrainerProcess
from service.settings.load import Settings
from trainer.run_dir import RunDirectory


class Examiner:
    """Has one process at most that waits for the end of a run. It ends when its stdin closes, as every trainer."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._early: TrainerProcess | None = None

    def start_early(self, run: RunDirectory) -> None:
        """Start the process, unless it was started. It only imports libraries, and does not touch the run or a GPU."""
        if self._early is None and self._settings.recipe.gate.examination:
            with contextlib.suppress(OSError):  # the run goes on, and `process` tries again
                self._early = self._start(run, waits=True)

    def process(self, run: RunDirectory) -> TrainerProcess:
        """Return a process that examines the run."""
        early, self._early = self._early, None
        if early is not None:
            if early.run == run and early.begin():
                return early
            early.kill()
        return self._start(run)

    def drop(self) -> None:
        """End the process that waits, if there is one: the run has no candidate, or the service does something else."""
        early, self._early = self._early, None
        if early is not None:
            early.kill()

    def _start(self, run: RunDirectory, *, waits: bool = False) -> TrainerProcess:
        secrets = {name: value for name, value in self._settings.trainer_secrets.items() if name == "HF_TOKEN"}
        if self._settings.sandbox_socket is not None:
            secrets["SANDBOX_SOCKET"] = self._settings.sandbox_socket
        return TrainerProcess(run, secrets, "examine", waits=waits)
