"""The run directory: writes survive a crash, and manifests detect changes."""

from __future__ import annotations

import math
import multiprocessing

import pytest
from run_folder import make_row

from trainer.records import EventTail, RowOutcome, append_event, json_line, read_outcomes, read_rows, write_outcomes
from trainer.run_dir import (
    RunDirectoryError,
    held_lock,
    new_folder,
    read_json,
    sha256_file,
    verify_manifest,
    write_json,
    write_manifest,
    write_text,
)


def test_a_file_is_replaced_whole_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": math.nan})
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert read_json(path) == {"a": 1}


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "adapter"
    with pytest.raises(ZeroDivisionError), new_folder(path) as temporary:
        (temporary / "half").write_text("x")
        assert not path.exists()
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    for text in ("first", "second"):
        with new_folder(path) as temporary:
            (temporary / "file").write_text(text)
    assert [file.name for file in tmp_path.iterdir()] == ["adapter"] and (path / "file").read_text() == "second"


def test_rows_come_back_whatever_they_hold(tmp_path):
    texts = ["plain", "\u2028 \x0b \r\n", "\ud800 alone", '"quoted"\\', ""]
    rows = [make_row(i, text) for i, text in enumerate(texts)]
    path = tmp_path / "rows.jsonl"
    write_text(path, "".join(json_line(vars(row)) for row in rows))
    assert list(read_rows(path)) == rows
    assert list(read_rows(tmp_path / "missing.jsonl")) == []


@pytest.mark.parametrize(("line", "message"), [("{", "not JSON"), ("[]", "JSON object"), ('{"x": 1}', "wrong fields")])
def test_a_bad_row_names_its_file(tmp_path, line, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(RunDirectoryError, match=f"rows.jsonl.*{message}"):
        list(read_rows(path))


def test_outcomes_come_back(tmp_path):
    outcomes = [RowOutcome(file_id=1, outcome="trained", samples=2, tokens=9), RowOutcome(file_id=2, outcome="unused")]
    write_outcomes(tmp_path / "out.jsonl", outcomes)
    assert list(read_outcomes(tmp_path / "out.jsonl")) == outcomes


def test_events_are_read_as_they_grow(tmp_path):
    path = tmp_path / "events.jsonl"
    tail = EventTail(path)
    assert tail.new() == []
    append_event(path, "step", loss=math.nan, path="a field of that name", norm=math.inf)
    (event,) = tail.new()
    assert (event["event"], event["loss"], event["norm"]) == ("step", "nan", "inf")
    with path.open("a") as file:
        file.write('{"event": "ha')
    assert tail.new() == []
    with path.open("a") as file:
        file.write('lf"}\nnonsense\n')
    assert [event["event"] for event in tail.new()] == ["half"]


def test_a_manifest_notices_every_change(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("a", "sub/b", "c"):
        (tmp_path / name).write_text(name)
    digest = write_manifest(tmp_path, run_id=3)
    assert digest == sha256_file(tmp_path / "MANIFEST.json")
    assert verify_manifest(tmp_path)["run_id"] == 3
    (tmp_path / "a").write_text("other")
    (tmp_path / "sub/b").unlink()
    with pytest.raises(RunDirectoryError, match=r"a has changed; sub/b is missing"):
        verify_manifest(tmp_path)
    for damaged in ("[]", '{"files": null}', '{"files": []}', "{"):
        (tmp_path / "MANIFEST.json").write_text(damaged)
        with pytest.raises(RunDirectoryError, match=r"no readable MANIFEST\.json"):
            verify_manifest(tmp_path)


def _hold(path, held, release):
    with held_lock(path, wait_seconds=5):
        held.set()
        release.wait(20)


def test_the_lock_is_exclusive_and_ends_with_its_process(tmp_path):
    context = multiprocessing.get_context("fork")
    held, release = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path / "lock", held, release))
    other.start()
    assert held.wait(20)
    with (
        pytest.raises(RunDirectoryError, match="held by another process"),
        held_lock(tmp_path / "lock", wait_seconds=0),
    ):
        pass
    other.kill()
    other.join()
    with held_lock(tmp_path / "lock", wait_seconds=5):
        pass
