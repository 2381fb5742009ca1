"""`codelupe drop --dry-run` says what would be taken, and needs neither a database nor a home folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from service.cli.main import app


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    (root / "node_modules").mkdir(parents=True)
    (root / "main.py").write_text("x = 1\n")
    (root / "node_modules" / "m.js").write_text("x = 1\n")
    (root / "notes.txt").write_text("x\n")
    (root / "two\nlines.txt").write_text("x\n")
    cells = [{"cell_type": "code", "source": "x = 1"}]
    (root / "a.ipynb").write_text(json.dumps({"cells": cells, "metadata": {}}))
    rows = [{"content": "x = 1", "path": "r.rs"}, {"prompt": "hi", "completion": "there"}, {"odd": 1}]
    (root / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root


def drop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *arguments: str) -> Result:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CODELUPE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    result = CliRunner().invoke(app, ["drop", "--dry-run", *arguments])
    assert not (tmp_path / "home").exists()
    return result


def test_it_counts_by_language_format_and_reason(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    result = drop(monkeypatch, tmp_path, str(project), "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {
        "dry_run": True,
        "would_insert": 4,
        "languages": {"python": 2, "rust": 1, "text": 1},
        "formats": {"notebook": 1, "file": 1, "JSON lines": 1, "conversation": 1},
        "passed_over": {"not a known language": 2, "vendored": 1, "row has no `content`": 1},
        "columns_not_used": {"odd": 1},
        "files_without_rows": [],
    }


def test_verbose_names_each_file(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    result = drop(monkeypatch, tmp_path, str(project), "--verbose")
    lines = result.stdout.splitlines()
    for line in ("python, notebook: a.ipynb", "rust, JSON lines: r.rs", "vendored: node_modules/m.js",
                 "not a known language: notes.txt", "not a known language: 'two\\nlines.txt'",
                 "row has no `content`: rows.jsonl:3"):  # fmt: skip
        assert line in lines
    found = json.loads(drop(monkeypatch, tmp_path, str(project), "--verbose", "--json").stdout)
    assert {"path": "main.py", "language": "python", "format": "file"} in found["files"]
    assert {"path": "node_modules/m.js", "reason": "vendored"} in found["passed_over_files"]


def test_vendored_folders_are_taken_if_asked_for(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found = json.loads(drop(monkeypatch, tmp_path, str(project), "--include-vendored", "--json").stdout)
    assert found["languages"]["javascript"] == 1 and "vendored" not in found["passed_over"]


def test_a_named_file_of_records_without_rows_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "rows.jsonl").write_text('{"odd": 1}\n')
    assert drop(monkeypatch, tmp_path, "rows.jsonl").exit_code == 1


def test_it_asks_for_no_run(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    result = drop(monkeypatch, tmp_path, str(project), "--train-now")
    assert result.exit_code != 0 and "--dry-run" in str(result.exception)
