"""Several processes read the files of a folder: the same rows in the same order as one process."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from db.files import NewFile
from service.errors import PreconditionError
from service.intake import reading
from service.intake.drop import read_sources
from service.intake.folders import FIRST_BYTES
from service.intake.formats import PassedOver
from service.intake.reading import Item, Unread, read_in_order
from service.intake.records import Given


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starts the processes after ten files."""
    monkeypatch.setattr(reading, "FEW_FILES", 10)
    monkeypatch.setattr(reading, "BATCH_FILES", 4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of all kinds: code, records, scripts, pictures, bad bytes, links, and a nested folder."""
    root = tmp_path / "project"
    (root / "lib").mkdir(parents=True)
    for number in range(60):
        (root / f"file{number:02}.py").write_text(f"def f{number}():\n    return {number}\n" * (1 + number % 7))
        (root / "lib" / f"file{number}.rs").write_bytes(b"fn main() {}\n" if number % 9 else b"\xff\xfe\xff")
    (root / "rows.jsonl").write_text('{"content": "x = 1", "path": "a.py"}\n' * 3 + "broken\n")
    (root / "run").write_text("#!/bin/sh\necho hello\n" + "#" * FIRST_BYTES)
    (root / "picture.png").write_bytes(b"\x89PNG")
    (root / "lib" / "link.py").symlink_to(root / "file00.py")
    return root


def test_the_rows_and_their_order_are_those_of_one_process(folder: Path) -> None:
    given = Given(phase="first")
    alone = list(read_sources([str(folder)], given))
    assert len(alone) == 60 * 2 + 4 + 3
    assert list(read_sources([str(folder)], given, jobs=2)) == alone
    assert sum(isinstance(item, PassedOver) for item in alone) > 8 and sum(isinstance(i, NewFile) for i in alone) > 110


def items(folder: Path) -> Iterator[Item]:
    for number in range(60):
        name = f"file{number:02}.py"
        yield Unread(path=folder / name, given=Given(), repository="r", name=name, commit=None)


def test_an_error_comes_after_all_that_was_found_before_it(folder: Path) -> None:
    def failing() -> Iterator[Item]:
        yield from items(folder)
        raise PreconditionError("the folder is gone")

    read: list[object] = []
    with pytest.raises(PreconditionError, match="the folder is gone"):
        read.extend(read_in_order(failing(), 2))
    assert len(read) == 60


def test_a_killed_process_ends_the_reading_with_what_to_do(folder: Path) -> None:
    reader = read_in_order(items(folder), 2)
    read = [next(reader) for _ in range(11)]
    for child in multiprocessing.active_children():
        os.kill(child.pid or 0, signal.SIGKILL)
    with pytest.raises(PreconditionError, match=r"one of 2 processes that read files was killed.*--jobs 1"):
        read.extend(reader)
    assert len(read) < 60 and multiprocessing.active_children() == []


def test_no_process_is_left_when_the_reading_is_given_up(folder: Path) -> None:
    reader = read_in_order(items(folder), 2)
    for _ in range(12):
        next(reader)
    assert multiprocessing.active_children()
    reader.close()  # type: ignore[attr-defined]
    assert multiprocessing.active_children() == []
