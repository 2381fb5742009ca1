"""The service goes on when stdout, stderr or the log file is taken away, and prints on any terminal."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from service.logs import _LogFile, _TextLines

ROOT = Path(__file__).parents[2]
SERVICE = """
import sys
from pathlib import Path
from service import logs, stdio
stdio.prepare()
logs.set_up("FORMAT", Path("log"))
show = logs.progress_printer("FORMAT")
for number in range(5):
    show("stage", "·" * 10_000)
    logs.event("Event", number=number)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("log_format", ["text", "json"])
@pytest.mark.parametrize("both", [False, True], ids=["stdout", "stdout and stderr"])
def test_a_service_goes_on_when_its_reader_has_gone(tmp_path: Path, log_format: str, both: bool):
    process = subprocess.Popen(
        [sys.executable, "-c", SERVICE.replace("FORMAT", log_format)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if both else subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    _, said = process.communicate(b"\n" * 5)
    assert process.returncode == 0 and b"Traceback" not in (said or b"")
    log = (tmp_path / "log").read_text()
    assert [f"{number}" in line for number, line in enumerate(ln for ln in log.splitlines() if "Event" in ln)] == [
        True
    ] * 5
    assert log.count("Cannot print to stdout any more") == 1 and "Broken pipe" in log


@pytest.mark.parametrize("closed", [(1,), (0, 1, 2)])
def test_a_service_starts_with_closed_streams(tmp_path: Path, closed: tuple[int, ...]):
    def close() -> None:
        for number in closed:
            os.close(number)

    done = subprocess.run(
        [sys.executable, "-c", SERVICE.replace("FORMAT", "text")],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, preexec_fn=close, capture_output=True, check=False,
    )  # fmt: skip
    log = (tmp_path / "log").read_text()
    assert done.returncode == 0 and b"Traceback" not in done.stderr
    assert log.count("Event") == 5 and "Cannot" not in log and "·" not in log


@pytest.mark.parametrize(
    "settings",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1:strict"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    ],
)
def test_a_terminal_without_unicode_gets_question_marks(tmp_path: Path, settings: dict[str, str]):
    script = """
from service import stdio
stdio.prepare()
from service.cli.console import print_table
from service.logs import progress_printer
progress_printer("text")("stage", "\\u2192 \\udcff ok")
print_table("\\u2192", ["\\u2192"], [["\\u2192"]])
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT), **settings}, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert rb"? \udcff ok" in done.stdout and len(done.stdout.splitlines()) > 4


def rename(path: Path) -> None:
    path.rename(path.with_suffix(".1"))


def rename_and_create(path: Path) -> None:
    rename(path)
    path.touch()


def copy_and_truncate(path: Path) -> None:
    path.with_suffix(".1").write_bytes(path.read_bytes())
    os.truncate(path, 0)


def move_into_another_folder(path: Path) -> None:
    (path.parent / "old").mkdir()
    path.rename(path.parent / "old" / path.name)


@pytest.mark.parametrize(
    "rotate", [rename, rename_and_create, copy_and_truncate, move_into_another_folder, Path.unlink]
)
def test_a_rotated_log_file_is_opened_anew(tmp_path: Path, rotate: Callable[[Path], object]):
    path = tmp_path / "service.log"
    handler = _LogFile(path, maxBytes=1000, backupCount=2, encoding="utf-8")
    handler.setFormatter(_TextLines())
    logger = logging.Logger("rotated")
    logger.addHandler(handler)
    logger.warning("before")
    rotate(path)
    logger.warning("after")
    assert [line.split()[-1] for line in path.read_text().splitlines()] == ["after"]
    for number in range(60):
        logger.warning("more %s", number)
    handler.close()
    assert path.stat().st_size <= 1000 and path.with_suffix(".log.1").exists()
