"""Row 19: removes one safeguard at a time. A test must then fail, which shows that the suite can find faults."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from oracle import Broken
from rows import Done, Row, Trials
from safeguards import MUTANTS, Mutant
from scene import HERE

ROOT = HERE.parents[1]
TIMEOUT_SECONDS = 600.0
COPIED = ("service", "trainer", "db", "migrations", "recipes", "tests", "pyproject.toml")
SAMPLE = "a worse candidate is refused"
FAILURE = re.compile(r"^(?:FAILED ([^\s[]+)|row (\d+), .*: FAILED|oracle\.(Broken): )", re.MULTILINE)
"""Matches a failed test, a failed trial, or a row whose set-up failed. It does not match collection and import errors,
because these prove nothing about a safeguard."""


def copy_program(folder: Path) -> Path:
    """Copy the program and its tests to a folder."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    return folder


def remove(mutant: Mutant, folder: Path) -> None:
    """Remove a safeguard from a copy.

    Raises:
        Broken: the file does not contain its text exactly once.
    """
    path = folder / mutant.file
    text = path.read_text()
    if text.count(mutant.old) != 1:
        raise Broken(
            f"{mutant.file} contains the safeguard {text.count(mutant.old)} times. Correct tests/faults/safeguards"
        )
    path.write_text(text.replace(mutant.old, mutant.new))


def tests_of_file(caught_by: tuple[str, ...]) -> tuple[str, ...]:
    """Return what must pass with every safeguard in place: all listed tests of the same file."""
    match caught_by:
        case ("row", *_):
            return caught_by
        case (file, *_):
            words = {" ".join(m.caught_by[2:]): None for m in MUTANTS.values() if m.caught_by[0] == file}
            return (file,) if "" in words else (file, "-k", " or ".join(f"({word})" for word in words))
    raise ValueError(caught_by)


def run_tests(caught_by: tuple[str, ...], folder: Path) -> tuple[int | None, str]:
    """Run tests in a copy. Return their exit code and output; the exit code is None if they hang."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    match caught_by:
        case ("row", number):
            command = [sys.executable, "tests/faults", "--sample", number]
        case arguments:
            command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *arguments]
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return None, process.communicate()[0]
    return process.returncode, output


def failing_test(mutant: Mutant, folder: Path) -> str:
    """Remove a safeguard, and return the test that fails.

    Raises:
        Broken: no test fails.
    """
    remove(mutant, copy_program(folder))
    code, output = run_tests(mutant.caught_by, folder)
    if code is None:
        return "timeout"
    red = FAILURE.search(output)
    if code != 1 or red is None:
        raise Broken(f"no test failed: exit code {code}: {output[-2000:]}")
    test, row, _ = red.groups()
    return test or f"row {row or mutant.caught_by[1]}"


@contextmanager
def mutations(folder: Path, sample: bool) -> Iterator[Trials]:
    names = [SAMPLE] if sample else list(MUTANTS)
    folder.joinpath("whole").mkdir()
    whole = copy_program(folder / "whole")
    green: set[tuple[str, ...]] = set()
    """Tests that passed with every safeguard in place."""

    def check_green(tests: tuple[str, ...]) -> None:
        if tests not in green:
            code, output = run_tests(tests, whole)
            if code != 0:
                raise Broken(f"{' '.join(tests)} fails with every safeguard in place: {output[-2000:]}")
            green.add(tests)

    def trial(number: int) -> Done:
        name, work = names[number], folder / f"mutant{number}"
        mutant = MUTANTS[name]
        work.mkdir()
        try:
            red = failing_test(mutant, work)
        except Broken as broken:
            raise Broken(f"{name}: {broken}") from broken
        shutil.rmtree(work)
        check_green(tests_of_file(mutant.caught_by))
        return Done(note=f"{name}: {red}")

    yield Trials(number=len(names), run=trial, names=[f"{name}: " for name in names])


ROWS = {
    19: Row(fault="each safeguard removed in turn", unit="safeguards", passes="a test fails", prepare=mutations),
}
