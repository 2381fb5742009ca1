"""`codelupe samples` shows files as a run would contain them."""

import json
from pathlib import Path

import pytest

from service.cli.preview import write_rows
from service.errors import UsageError
from trainer.recipe import Hygiene
from trainer.records import read_rows


def test_rows_of_files_have_their_secrets_replaced(tmp_path: Path):
    (tmp_path / "a.py").write_text('password = "x9K!mQ72#pL"\n')
    (tmp_path / "link.py").symlink_to("a.py")
    line = {"content": "x = 1", "path": "b.py", "metadata": {"diff": '+password = "x9K!mQ72#pL"'}}
    (tmp_path / "rows.jsonl").write_text(json.dumps(line))
    paths = [tmp_path / name for name in ("a.py", "link.py", "rows.jsonl")]
    assert write_rows(tmp_path / "out", paths, Hygiene()) == [f"{tmp_path}/link.py: symlink"]
    one, two = read_rows(tmp_path / "out")
    assert (one.content, two.content) == ('password = "REDACTED_SECRET"\n', "x = 1")
    assert two.metadata == {"diff": '+password = "REDACTED_SECRET"'}
    write_rows(tmp_path / "out", paths, Hygiene(secrets="keep"))
    assert "x9K!mQ72#pL" in next(iter(read_rows(tmp_path / "out"))).content


def test_nothing_to_show_is_an_error(tmp_path: Path):
    (tmp_path / "a.txt").write_text("no code")
    with pytest.raises(UsageError, match="not a known language"):
        write_rows(tmp_path / "out", [tmp_path / "a.txt"], Hygiene())
