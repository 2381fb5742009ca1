"""Starts the processes of a run on the GPUs of one machine, and ends with the exit code of their run. (no torch)

    service ─ stdin, SIGTERM ─▶ launcher ─ stdin ─▶ rank 0, rank 1, …      each is `python -m trainer run`

Why not torchrun itself: it reports 1 for every failure, so the service could not tell a run that ran out of memory from
one whose input is unusable. It also reads nothing from its stdin, and the ranks would outlive a killed service. The
ranks get torchrun's variables, and a run that a person starts with torchrun trains the same.

No process is left behind, because each rank ends when the launcher's end of its stdin closes, which the kernel does
whenever the launcher ends. No two starts of a run train at once, because the ranks inherit the run's lock.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from trainer.cards_in_use import NoReadings, NvmlCards
from trainer.errors import Diverged, OutOfMemory, RecipeError, Stopped, UnusableInput
from trainer.recipe import Recipe, share_equally
from trainer.recipe_file import load_recipe
from trainer.records import append_event
from trainer.run_dir import RunDirectory
from trainer.stop import StopRequest, write_stderr

RENDEZVOUS = "CODELUPE_RENDEZVOUS"
"""Path of the file over which the ranks find each other. A file needs no port, which another program could take."""
LOCK_HELD = "CODELUPE_LOCK_HELD"
"""Set for a rank that a driver started, which holds the run's lock: the rank must not wait for it."""
ALONE_SECONDS = 15.0
"""Time for such a rank to stop after whoever started it is gone."""
POLL_SECONDS = 0.1
SETTLE_SECONDS = 3.0
"""After one rank has failed, time for the others to end for the same reason."""
STOP_SECONDS = 15.0
"""After that, time for the others to stop by themselves. A rank that waits for one that is gone is then killed."""
CAUSES = (UnusableInput.exit_code, Diverged.exit_code, OutOfMemory.exit_code)
"""Exit codes that say why a run ended. They win over those of ranks that only lost another."""


def ranks_to_start(directory: RunDirectory) -> int:
    """Return how many processes train a run when this one starts it. An unreadable recipe is reported by one."""
    if "WORLD_SIZE" in os.environ:  # this process is one of them
        return 1
    try:
        recipe = load_recipe(directory.recipe)
    except RecipeError:
        return 1
    return ranks_for(recipe, visible_cards()) if recipe.distributed.launcher == "torchrun" else 1


def recipe_for_ray(directory: RunDirectory) -> Recipe | None:
    """Return the run's recipe if a Ray cluster is to train it, and this process is not one of its ranks."""
    if "WORLD_SIZE" in os.environ:
        return None
    try:
        recipe = load_recipe(directory.recipe)
    except RecipeError:  # whoever trains reports it
        return None
    return recipe if recipe.distributed.launcher == "ray" else None


def ranks_for(recipe: Recipe, cards: int) -> int:
    """Return the number of processes for a machine's cards: the most that share the samples of a step equally.

    Without a card, there are as many as the recipe says, on the CPU.
    """
    wanted = recipe.distributed.processes
    most = max(1, cards) if wanted == "auto" else min(wanted, cards or wanted)
    return max(number for number in range(1, most + 1) if share_equally(recipe, number))


def visible_cards() -> int:
    """Return the number of GPUs that torch sees. torch is imported only if the machine has a driver."""
    try:
        NvmlCards([])
    except NoReadings:
        return 0
    import torch

    return torch.cuda.device_count()


def launch(directory: RunDirectory, number: int, stop: StopRequest, lock: int) -> int:
    """Start `number` ranks, wait for all of them, and return the exit code of the run.

    Args:
        stop: ends the ranks, each with a checkpoint
        lock: descriptor of the run's lock, which the ranks inherit
    """
    with tempfile.TemporaryDirectory(prefix="codelupe-") as folder, stop.deferred():
        ranks = Ranks(start_ranks(directory, number, Path(folder) / "rendezvous", lock))
        try:
            ranks.wait(stop)
        finally:
            ranks.kill()
    return report_cause(directory, *cause_of(ranks.codes), number)


def report_cause(directory: RunDirectory, code: int, rank: int, number: int) -> int:
    """Write the event of a run that a rank made fail, unless that rank has. Returns the exit code."""
    if code not in (0, Stopped.exit_code) and (rank != 0 or code < 0):  # rank 0 has written its own
        message = f"process {rank} of {number} {_ending(code)}. trainer.log has its last lines, after [rank {rank}]"
        write_stderr(message)
        with suppress(OSError):  # a full disk must not change the exit code
            append_event(directory.events, "failed", code=code, message=message)
    return code


def start_ranks(directory: RunDirectory, number: int, rendezvous: Path, lock: int) -> list[subprocess.Popen[bytes]]:
    """Start the ranks, each with a pipe to its stdin."""
    return [
        subprocess.Popen(
            [sys.executable, "-m", "trainer", "run", str(directory.root)],
            stdin=subprocess.PIPE,
            env={**os.environ, **rank_environment(rank, number, rendezvous)},
            pass_fds=(lock,),
        )
        for rank in range(number)
    ]


def rank_environment(rank: int, number: int, rendezvous: Path) -> dict[str, str]:
    """Return torchrun's variables for a rank on this machine, and where the ranks meet. One alone meets nobody."""
    if number == 1:
        return {RENDEZVOUS: str(rendezvous)}
    threads = max(1, len(os.sched_getaffinity(0)) // number)
    return {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(number),
        "LOCAL_WORLD_SIZE": str(number),
        RENDEZVOUS: str(rendezvous),
    }


@dataclass
class Ranks:
    """Running ranks, and how they ended."""

    processes: Sequence[subprocess.Popen[bytes]]
    codes: dict[int, int] = field(default_factory=dict)
    """Exit codes of the ranks that ended by themselves."""

    def wait(self, stop: StopRequest) -> None:
        """Wait for all ranks. When one fails, the others are ended, too."""
        failed_at: float | None = None
        while running := [rank for rank, process in enumerate(self.processes) if process.poll() is None]:
            if stop.reason is not None:
                self._ask()
            self._note_ended(asked=failed_at is not None and time.monotonic() > failed_at + SETTLE_SECONDS)
            if failed_at is None and any(self.codes.values()):
                failed_at = time.monotonic()
            if failed_at is not None and time.monotonic() > failed_at + SETTLE_SECONDS:
                self._ask()
                if time.monotonic() > failed_at + SETTLE_SECONDS + STOP_SECONDS:
                    write_stderr(f"rank {', '.join(map(str, running))} waits for one that is gone, and is killed")
                    return
            time.sleep(POLL_SECONDS)
        self._note_ended(asked=failed_at is not None and time.monotonic() > failed_at + SETTLE_SECONDS)

    def kill(self) -> None:
        """End what still runs."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()

    def _note_ended(self, *, asked: bool) -> None:
        """Note new exit codes. What ends because it was asked to is no cause."""
        for rank, process in enumerate(self.processes):
            if process.returncode is not None and rank not in self.codes:
                self.codes[rank] = 0 if asked else process.returncode

    def _ask(self) -> None:
        """Close the ranks' stdin: each stops at the end of its step, or at once before the first."""
        for process in self.processes:
            if process.stdin is not None and not process.stdin.closed:
                process.stdin.close()


def cause_of(codes: Mapping[int, int]) -> tuple[int, int]:
    """Return the exit code of the run, and the rank that caused it.

    A code that says why comes first, then a signal, then a stop, then a failure: a rank that loses another fails, too.
    """

    def order(item: tuple[int, int]) -> tuple[int, int]:
        rank, code = item
        if code in CAUSES:
            return CAUSES.index(code), rank
        return {code < 0: 5, code == Stopped.exit_code: 6, code == 0: 9}.get(True, 7), rank

    rank, code = min(codes.items(), key=order)
    return code, rank


def end_like(code: int) -> int:
    """Return an exit code, or end by the signal that it stands for, so that whoever waits sees the same."""
    if code >= 0:
        return code
    number = signal.Signals(-code)
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    return 1


def _ending(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
