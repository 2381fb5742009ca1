"""The trainer's other commands, each a process of its own: prepare, plan, samples, evaluate, doctor, export, push."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from service import progress
from service.cycle.launch import PROJECT, STOP_GRACE_SECONDS, TRAINER, WATCH_SECONDS, trainer_environment
from service.cycle.telling import Telling
from service.visible import visible
from trainer.recipe import TINY_BASE, Recipe
from trainer.records import EventTail


def plan_memory(recipe_file: Path, arguments: Sequence[str], secrets: Mapping[str, str]) -> int:
    """Run `python -m trainer plan`, which prints the plan. Return its exit code: 2 unusable recipe, 3 nothing fits."""
    command = [*TRAINER, "plan", str(recipe_file), *arguments]
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, cwd=PROJECT, env=trainer_environment(os.environ, secrets), check=False
    ).returncode


def show_samples(recipe_file: Path, rows_file: Path, arguments: Sequence[str], secrets: Mapping[str, str]) -> int:
    """Run `python -m trainer samples`, which prints the samples. Return its exit code: 2 for unusable input."""
    command = [*TRAINER, "samples", str(recipe_file), str(rows_file), *arguments]
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, cwd=PROJECT, env=trainer_environment(os.environ, secrets), check=False
    ).returncode


def make_toy(base: str, folder: Path, secrets: Mapping[str, str]) -> int:
    """Run `python -m trainer toy`, which writes a random model of a base's architecture. Return its exit code.

    It has its own session, so Ctrl-C does not reach it. It is killed with this command.
    """
    command = [*TRAINER, "toy", base, str(folder)]
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd=PROJECT,
        env=trainer_environment(os.environ, secrets), check=False, start_new_session=True,
    ).returncode  # fmt: skip


def evaluate(recipe_file: Path, results: Path, arguments: Sequence[str], secrets: Mapping[str, str]) -> int:
    """Run `python -m trainer evaluate`, which says on stderr what it does. Return its exit code: 75 if it was stopped.

    Ctrl-C reaches it too. It keeps what it has, and the same command goes on.
    """
    command = [*TRAINER, "evaluate", str(recipe_file), str(results), *arguments]
    return _run_below_bars(command, secrets) if progress.is_drawn() else _run_until_stopped(command, secrets)


def reward(recipe_file: Path, folder: Path, arguments: Sequence[str], secrets: Mapping[str, str]) -> int:
    """Run `python -m trainer reward`, as `evaluate`. Return its exit code: 75 if it was stopped."""
    return _run_until_stopped([*TRAINER, "reward", str(recipe_file), str(folder), *arguments], secrets)


def _run_until_stopped(command: Sequence[str], secrets: Mapping[str, str]) -> int:
    environment = trainer_environment(os.environ, secrets)
    with subprocess.Popen(command, stdin=subprocess.PIPE, cwd=PROJECT, env=environment) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            return process.wait(STOP_GRACE_SECONDS)


def _run_below_bars(command: Sequence[str], secrets: Mapping[str, str]) -> int:
    """The same while the terminal has bars: they show its progress, and what it says goes above them."""
    environment = trainer_environment(os.environ, secrets)
    with tempfile.TemporaryDirectory() as folder:
        events = EventTail(Path(folder) / "events.jsonl")
        process = subprocess.Popen(
            [*command, "--progress", str(events.path)], stdin=subprocess.PIPE, stderr=subprocess.PIPE, cwd=PROJECT,
            env=environment, text=True, errors="replace",
        )  # fmt: skip
        told = threading.Thread(target=_repeat, args=[process], daemon=True)
        telling = Telling()
        with process:
            told.start()
            try:
                while _still_runs(process):
                    for event in events.new():
                        telling.tell(event)
            except KeyboardInterrupt:
                process.wait(STOP_GRACE_SECONDS)
            told.join()
            telling.end()
    return process.returncode


def _still_runs(process: subprocess.Popen[str]) -> bool:
    try:
        process.wait(WATCH_SECONDS)
    except subprocess.TimeoutExpired:
        return True
    return False


def _repeat(process: subprocess.Popen[str]) -> None:
    """Print a process's stderr."""
    assert process.stderr is not None
    for line in process.stderr:
        print(visible(line), end="", file=sys.stderr, flush=True)


def export_or_push(
    arguments: Sequence[str], secrets: Mapping[str, str], *, seconds: float | None = None
) -> tuple[int, dict[str, Any]]:
    """Run `python -m trainer merge`, `export` or `push`. Return its exit code, and what it made.

    It says on stderr what it does. Ctrl-C reaches it too, and it then removes what is not complete.

    Args:
        seconds: it is killed after this time
    """
    environment = trainer_environment(os.environ, secrets)
    with subprocess.Popen(
        [*TRAINER, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=PROJECT, env=environment, text=True
    ) as process:
        assert process.stdout is not None
        try:
            process.wait(seconds)  # its stdout is one line, which fits into the pipe
        except KeyboardInterrupt:
            process.wait(STOP_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        output = process.stdout.read().splitlines()
    return process.returncode, json.loads(output[-1]) if process.returncode == 0 else {}


def examine_trainer(
    recipe_file: Path, secrets: Mapping[str, str], *, seconds: float, folder: Path | None = None
) -> tuple[str, str]:
    """Run `python -m trainer doctor` for up to `seconds`. Return its stdout and stderr.

    Args:
        folder: where a training is going to write, to check what it takes. None: no training is planned
    """
    command = [sys.executable, "-m", "trainer", "doctor", str(recipe_file)]
    command += [] if folder is None else ["--folder", str(folder)]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=PROJECT,
        env=trainer_environment(os.environ, secrets),
        start_new_session=True,
    ) as process:
        try:
            return process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            output, errors = process.communicate()
            return output, f"{errors}\nno answer in {seconds:.0f} s"


def prepare_base(
    recipe_file: Path,
    secrets: Mapping[str, str],
    stop: threading.Event,
    each_moment: Callable[[], None],
    *,
    capture_stderr: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run `python -m trainer prepare`: resolve the base and check that the recipe fits it.

    Its stderr goes to the user unless it is captured. It runs in its own session, so Ctrl-C does not reach it. It is
    killed when `stop` is set.
    """
    with subprocess.Popen(
        [*TRAINER, "prepare", str(recipe_file)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if capture_stderr else None,
        text=True,
        cwd=PROJECT,
        env=trainer_environment(os.environ, secrets),
        start_new_session=True,
    ) as process:
        while True:
            try:
                output, errors = process.communicate(timeout=WATCH_SECONDS)
                return subprocess.CompletedProcess(process.args, process.returncode, output, errors)
            except subprocess.TimeoutExpired:
                each_moment()
                if stop.is_set():
                    process.kill()
            except BaseException:
                process.kill()
                raise


def with_absolute_folder(recipe: Recipe) -> Recipe:
    """Make the paths of a base folder and of suites absolute: the trainer has another working directory."""
    suites = tuple(str(Path(suite).expanduser().absolute()) for suite in recipe.evaluation.suites)
    recipe = replace(recipe, evaluation=replace(recipe.evaluation, suites=suites))
    try:
        folder = Path(recipe.base.model).expanduser()
        if recipe.base.model == TINY_BASE or not folder.is_dir():
            return recipe
    except (OSError, RuntimeError):  # not a path; the trainer reports it
        return recipe
    return replace(recipe, base=replace(recipe.base, model=str(folder.absolute())))
