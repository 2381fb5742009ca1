"""The command line `python -m trainer`: run, examine, track, evaluate, reward, sandbox, toy, the commands about a
recipe (trainer/recipe_commands.py), and those about adapters (trainer/adapters/commands.py)."""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from contextlib import suppress
from pathlib import Path

from trainer import recipe_commands
from trainer.adapters import commands as adapter_commands
from trainer.errors import Stopped, TrainerError, UnusableInput
from trainer.evaluate.request import add_arguments, request_from
from trainer.events import Events
from trainer.imports import collector_paused, import_libraries, import_trainer, set_up_torch
from trainer.ranks import ALONE_SECONDS, LOCK_HELD, RENDEZVOUS, end_like, launch, ranks_to_start, recipe_for_ray
from trainer.recipe import Recipe
from trainer.reward.entry import add_reward, reward_command
from trainer.run_dir import RunDirectory, RunDirectoryError, held_lock
from trainer.stop import PrefixedOutput, StopRequest, write_stderr
from trainer.world_size import world_size

LOCK_WAIT_SECONDS = 60.0
LAST_SECONDS = 50.0
"""Time for one of several processes to stop, shorter than the next start waits for their lock."""
OUT_OF_MEMORY, FAILED = 3, 1


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m trainer", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train a run directory")
    run.add_argument("directory", type=Path)
    examination = commands.add_parser("examine", help="load a finished run's adapter in a fresh process, and try it")
    examination.add_argument("directory", type=Path)
    examination.add_argument(
        "--wait", action="store_true", help="import the libraries, then wait for a line on stdin before anything else"
    )
    track = commands.add_parser("track", help="send the verdict on a finished run to its trackers")
    track.add_argument("directory", type=Path)
    add_arguments(
        commands.add_parser("evaluate", help="evaluate an adapter or the base on a benchmark or held-out rows")
    )
    add_reward(commands)
    sandbox = commands.add_parser("sandbox", help="run model-written code for a trainer in another container")
    sandbox.add_argument("--listen", type=Path, required=True, metavar="SOCKET")
    toy = commands.add_parser("toy", help="write a random toy model of an architecture, to try recipes with")
    toy.add_argument(
        "architecture",
        metavar="ARCHITECTURE",
        help="qwen2, qwen3, mixtral or llama, or a base whose architecture it is",
    )
    toy.add_argument("out", type=Path, metavar="OUT")
    recipe_commands.add_commands(commands)
    adapter_commands.add_commands(commands)
    chosen = parser.parse_args(arguments)
    if chosen.command in adapter_commands.NAMES:
        return adapter_commands.run_adapter_command(chosen)
    if chosen.command in recipe_commands.COMMANDS:
        return recipe_commands.run_recipe_command(chosen)
    match chosen.command:
        case "run":
            return run_command(chosen.directory)
        case "track":
            return track_command(chosen.directory)
        case "evaluate":
            return evaluate_command(chosen)
        case "reward":
            return reward_command(chosen)
        case "sandbox":
            return sandbox_command(chosen.listen)
        case "toy":
            return toy_command(chosen.architecture, chosen.out)
        case _:
            return examine_command(chosen.directory, wait=chosen.wait)


def run_command(root: Path) -> int:
    """Train a run directory while holding its lock. Does nothing if the run has its report."""
    directory = RunDirectory(root.absolute())
    if not directory.root.is_dir():
        write_stderr(f"{directory.root} is not a folder")
        return UnusableInput.exit_code
    set_up_torch()
    stop = StopRequest()
    try:
        stop.listen(most_seconds=_last_seconds())
        if _rank() != 0 or RENDEZVOUS in os.environ or LOCK_HELD in os.environ:  # rank 0 or the launcher holds the lock
            return _train_to_exit_code(directory, stop)
        number = ranks_to_start(directory)
        with held_lock(directory.lock, wait_seconds=LOCK_WAIT_SECONDS) as lock:
            if (recipe := recipe_for_ray(directory)) is not None and not directory.report.exists():
                return end_like(_drive(directory, recipe, stop))
            if number > 1 and not directory.report.exists():
                return end_like(launch(directory, number, stop, lock))
            return _train_to_exit_code(directory, stop)
    except Stopped as stopped:
        write_stderr(f"stopped: {stopped}")
        return stopped.exit_code
    except RunDirectoryError as error:  # another process trains this run and writes its events
        write_stderr(f"{error}. Start again when that process has ended")
        return Stopped.exit_code


def examine_command(root: Path, *, wait: bool = False) -> int:
    """Examine the adapter of a finished run while holding the run's lock. Does nothing if it was examined.

    Args:
        wait: the service starts this process before the run has ended. Until a line comes, it only imports
    """
    directory = RunDirectory(root.absolute())
    if wait:
        set_up_torch()
        import_libraries()
        if not os.read(0, 1):  # the service ended, or the run did without an adapter
            return Stopped.exit_code
    if not directory.report.is_file():
        write_stderr(f"{directory.root} is not a finished run: it has no {directory.report.name}")
        return UnusableInput.exit_code
    set_up_torch()
    stop = StopRequest()
    try:
        stop.listen()
        with held_lock(directory.lock, wait_seconds=LOCK_WAIT_SECONDS):
            if directory.examination.exists():
                return 0
            import_trainer("trainer.examine")
            from trainer.examine import examine

            examine(directory, stop)
            return 0
    except TrainerError as error:
        write_stderr(str(error))
        return error.exit_code
    except RunDirectoryError as error:
        write_stderr(f"{error}. Start again when that process has ended")
        return Stopped.exit_code


def track_command(root: Path) -> int:
    """Send a finished run's verdict to its trackers while holding the run's lock. Does nothing if it was sent."""
    from trainer.verdict import send_verdict

    directory = RunDirectory(root.absolute())
    try:
        if not directory.verdict.is_file():
            raise UnusableInput(f"{directory.root} has no {directory.verdict.name}. The service writes it")
        with held_lock(directory.lock, wait_seconds=LOCK_WAIT_SECONDS):
            problems = [] if directory.verdict_sent.exists() else send_verdict(directory)
    except TrainerError as error:
        write_stderr(str(error))
        return error.exit_code
    except RunDirectoryError as error:
        write_stderr(f"{error}. Start again when that process has ended")
        return Stopped.exit_code
    for problem in problems:
        write_stderr(problem)
    return FAILED if problems else 0


def evaluate_command(chosen: argparse.Namespace) -> int:
    """Evaluate. Returns 75 if it was stopped; the same command goes on."""
    set_up_torch()
    stop = StopRequest()
    try:
        request = request_from(chosen)
        stop.listen()
        import_trainer("trainer.evaluate.command")
        from trainer.evaluate import command

        command.evaluate_command(request, stop)
        return 0
    except Stopped as stopped:
        write_stderr(f"stopped: {stopped}. The same command goes on from here")
        return stopped.exit_code
    except TrainerError as error:
        write_stderr(str(error))
        return error.exit_code


def sandbox_command(path: Path) -> int:
    """Serve the sandbox on a Unix socket until it is stopped."""
    from trainer.evaluate.sandbox.server import listen

    try:
        listen(path)
        return 0
    except TrainerError as error:
        write_stderr(str(error))
        return error.exit_code


def toy_command(architecture: str, out: Path) -> int:
    """Write a toy model."""
    try:
        with collector_paused():
            from trainer.model.toy import TOYS, architecture_of, make_toy

        parameters = make_toy(architecture if architecture in TOYS else architecture_of(architecture), out.expanduser())
    except (TrainerError, OSError) as error:
        write_stderr(str(error))
        return getattr(error, "exit_code", FAILED)
    sys.stdout.write(json.dumps({"folder": str(out), "architecture": architecture, "parameters": parameters}) + "\n")
    return 0


def _drive(directory: RunDirectory, recipe: Recipe, stop: StopRequest) -> int:
    """Train on a Ray cluster. Its ranks write the events of the run, this process those of the cluster."""
    from trainer.cluster.driver import drive

    events = Events(directory.events)
    try:
        return drive(directory, recipe, stop)
    except Stopped as stopped:
        events.emit("stopping", reason=str(stopped))
        raise
    except TrainerError as error:
        return _failed(events, error.exit_code, str(error))


def _train_to_exit_code(directory: RunDirectory, stop: StopRequest) -> int:
    """Train, and report every outcome as an event and an exit code."""
    if directory.report.exists():
        return 0
    events = Events(directory.events, enabled=_rank() == 0)
    try:
        stop.check()
        import_trainer()  # takes seconds; requests to stop already work
        from trainer.train import train

        train(directory, events, stop)
        return 0
    except Stopped as stopped:
        events.emit("stopping", reason=str(stopped))
        write_stderr(f"stopped: {stopped}")
        return stopped.exit_code
    except TrainerError as error:
        return _failed(events, error.exit_code, str(error))
    except Exception as error:  # noqa: BLE001  (the process boundary: nothing above explains it)
        if stop.reason is not None and isinstance(error.__context__, Stopped):
            events.emit("stopping", reason=stop.reason)
            return Stopped.exit_code
        traceback.print_exc()
        from trainer.model.memory import is_out_of_memory

        code = OUT_OF_MEMORY if is_out_of_memory(error) else FAILED
        if world_size() > 1 and code == FAILED:
            return _failed(events, code, f"one of {world_size()} processes failed or lost another ({error})")
        return _failed(events, code, f"{type(error).__name__}: {error}")


def _failed(events: Events, code: int, message: str) -> int:
    write_stderr(message)
    with suppress(OSError):  # a full disk must not change the exit code
        events.emit("failed", code=code, message=message)
    return code


def _last_seconds() -> float | None:
    """Time to stop after stdin has closed. None: as long as it takes."""
    if LOCK_HELD in os.environ:
        return ALONE_SECONDS
    return LAST_SECONDS if world_size() > 1 else None


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # its encoding may lack a sample's characters
    if world_size() > 1:
        sys.stdout = PrefixedOutput(sys.stdout, f"[rank {_rank()}] ")
        sys.stderr = PrefixedOutput(sys.stderr, f"[rank {_rank()}] ")
    sys.exit(main())
