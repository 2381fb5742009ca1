"""`make faults` keeps results correctly across runs."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
from rows import Done, Row, Trials


class Made:
    """A row that records the names of the trials it ran."""

    def __init__(self) -> None:
        self.things = ["a: ", "b: ", "c: "]
        self.made: list[str] = []

    @contextmanager
    def prepare(self, folder: Path, sample: bool) -> Iterator[Trials]:
        def trial(number: int) -> Done:
            self.made.append(self.things[number])
            return Done(note=f"{self.things[number]}well")

        yield Trials(number=len(self.things), run=trial, names=self.things)


@pytest.fixture
def row() -> Made:
    return Made()


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, row: Made) -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_faults", Path(__file__).with_name("__main__.py"))
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "make_faults", made)
    spec.loader.exec_module(made)
    rows = {n: Row(fault="f", unit="times", passes="p", prepare=row.prepare) for n in (7, 18)}
    for name, value in {"ROWS": rows, "WORK": tmp_path / "work", "RESULTS": tmp_path / "faults.md"}.items():
        monkeypatch.setattr(made, name, value)
    return made


def start(program: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["faults", *arguments])
    return int(program.main())


def test_a_passed_trial_is_not_repeated_but_a_new_one_in_its_place_is_run(
    program: ModuleType, row: Made, monkeypatch: pytest.MonkeyPatch
):
    assert start(program, monkeypatch, "7") == start(program, monkeypatch, "7") == 0
    assert row.made == ["a: ", "b: ", "c: "]
    row.things[1:] = ["x: ", "b: ", "c: "]
    start(program, monkeypatch, "7")
    assert row.made[3:] == ["x: ", "b: ", "c: "]
    row.things[1:] = ["b: "]
    start(program, monkeypatch, "7")
    assert "| 2 times | 0 |" in program.report()


@pytest.mark.parametrize(
    "arguments",
    [
        ("7", "--trials", "4"),
        ("7", "--sample", "--trials", "4"),
        ("7", "--trials", "0"),
        ("7", "--again", "--trials", "1"),
        ("7", "--again", "--sample"),
        ("7", "--hours", "2"),
        ("18", "--hours", "0"),
        ("18", "--hours", "nan"),
        ("18", "--hours", "inf"),
        ("18", "--sample", "--hours", "2"),
        ("20",),
    ],
)
def test_a_usage_error_runs_no_trial_and_records_nothing(
    program: ModuleType, row: Made, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
):
    start(program, monkeypatch, "7")
    row.made.clear()
    with pytest.raises(SystemExit) as ended:
        start(program, monkeypatch, *arguments)
    assert ended.value.code not in (0, None) and row.made == []
    assert "| 3 times | 0 |" in program.report()


def test_a_longer_soak_runs_although_a_shorter_one_passed(
    program: ModuleType, row: Made, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FAULTS_HOURS", "1")
    start(program, monkeypatch, "18")
    row.made.clear()
    start(program, monkeypatch, "18", "--hours", "24")
    assert row.made == ["a: "]


def test_a_result_names_the_commit_at_the_start_of_its_row(
    program: ModuleType, row: Made, monkeypatch: pytest.MonkeyPatch
):
    """A new commit is made while a long row runs."""
    prepare = row.prepare

    @contextmanager
    def committed_meanwhile(folder: Path, sample: bool) -> Iterator[Trials]:
        with prepare(folder, sample) as trials:
            monkeypatch.setattr(program, "commit", lambda: "later")
            yield trials

    monkeypatch.setattr(program, "commit", lambda: "begun")
    program.ROWS[7] = Row(fault="f", unit="times", passes="p", prepare=committed_meanwhile)
    start(program, monkeypatch, "7")
    assert {record.commit for record in program.records(7).values()} == {"begun"}
