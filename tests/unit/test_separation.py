"""No row may both be trained on and judge: neither itself nor a copy of it."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
from run_folder import make_row, program

from service.admission.separation import leaks
from trainer.recipe import Hygiene
from trainer.records import Row, json_line
from trainer.run_dir import RunDirectory, content_sha256

JUDGED = [make_row(n, program(n)) for n in (1, 2, 3)]


def directory(root: Path, rows: list[Row], *, replay: list[Row] | None = None) -> RunDirectory:
    run = RunDirectory(root)
    for path, records in ((run.rows, rows), (run.held_out, JUDGED), (run.replay, replay or [])):
        path.write_text("".join(json_line(asdict(row)) for row in records))
    return run


def copy_of(row: Row, text: str) -> Row:
    return replace(row, file_id=50, path="elsewhere.py", content=text, sha256=content_sha256(text))


SAME = copy_of(JUDGED[0], JUDGED[0].content + "\n\n")
NEAR = copy_of(JUDGED[0], JUDGED[0].content.replace("return total", "return  total  # done"))


def test_different_rows_are_separate(tmp_path: Path):
    assert leaks(directory(tmp_path, [make_row(n, program(n)) for n in range(10, 30)]), {1, 2, 3}, Hygiene()) == []


@pytest.mark.parametrize(
    ("row", "said"),
    [(JUDGED[1], "file 2 was trained on, and it judges"),
     (SAME, "file 50 was trained on, and it has the text of file 1"),
     (NEAR, "file 50 was trained on, and it resembles file 1")],
)  # fmt: skip
@pytest.mark.parametrize("replayed", [False, True])
def test_a_judged_row_or_a_copy_of_it_is_named(tmp_path: Path, row: Row, said: str, replayed: bool):
    other = [make_row(10, program(10))]
    run = directory(tmp_path, other, replay=[row]) if replayed else directory(tmp_path, [*other, row])
    (found,) = leaks(run, {1, 2, 3}, Hygiene())
    assert found.startswith(said)


def test_only_judged_rows_count(tmp_path: Path):
    assert leaks(directory(tmp_path, [SAME]), {2, 3}, Hygiene()) == []


def test_copies_count_as_the_recipe_says(tmp_path: Path):
    run = directory(tmp_path, [SAME, replace(NEAR, file_id=51), JUDGED[1]])
    assert len(leaks(run, {1, 2, 3}, Hygiene())) == 3
    assert len(leaks(run, {1, 2, 3}, Hygiene(duplicates="exact"))) == 2
    assert len(leaks(run, {1, 2, 3}, Hygiene(duplicates="none"))) == 1
