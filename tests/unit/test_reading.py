"""Rows are read while the model is loaded. Each side reports its own errors, and no thread remains."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
from run_folder import events, make_row, make_run, run, short_recipe, short_rows, short_run

from trainer import reading, train
from trainer.errors import UnusableInput

load_model = train.load_model
read_rows = reading.read_rows


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "samples"]


def wait_until(true) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_model_is_loaded_while_rows_are_read(tmp_path, monkeypatch):
    """Each side waits until the other has begun."""
    directory = short_run(tmp_path / "run")
    loading, reading_rows = threading.Event(), threading.Event()

    def rows(path):
        if path == directory.rows:
            reading_rows.set()
            assert loading.wait(30)
        return read_rows(path)

    def load(*arguments):
        loading.set()
        assert reading_rows.wait(30)
        return load_model(*arguments)

    monkeypatch.setattr(reading, "read_rows", rows)
    monkeypatch.setattr(train, "load_model", load)
    assert run(directory) == 0
    seconds = {event["stage"]: event["seconds"] for event in events(directory, "stage") if event["state"] == "end"}
    assert seconds["samples"] > 0 and seconds["model"] > 0


def test_without_a_held_out_sample_no_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "load_model", lambda *_: pytest.fail("the model was loaded"))
    directory = make_run(tmp_path / "run", short_recipe(), short_rows(4), [make_row(9, "a\n")])
    assert run(directory) == 0
    assert events(directory, "unmeasured") and "model" not in {e["stage"] for e in events(directory, "stage")}


@pytest.mark.parametrize("damaged", ["rows", "held_out"])
def test_a_row_that_cannot_be_read_ends_the_run_with_its_own_message(tmp_path, monkeypatch, damaged):
    directory = short_run(tmp_path / "run")

    def rows(path):
        if path == getattr(directory, damaged):
            raise reading.RunDirectoryError(f"{path.name}, line 3: not JSON")
        return read_rows(path)

    monkeypatch.setattr(reading, "read_rows", rows)
    assert run(directory) == 2
    (failed,) = events(directory, "failed")
    assert failed["message"] == f"{damaged}.jsonl, line 3: not JSON"


def test_a_model_that_cannot_be_loaded_ends_the_reading_too(tmp_path, monkeypatch):
    """The rows never end by themselves."""
    directory = short_run(tmp_path / "run")
    seen = []

    def rows(path):
        if path != directory.rows:
            yield from read_rows(path)
            return
        while True:
            seen.append(0)
            yield make_row(1000 + len(seen), "a\n")
            time.sleep(0.001)

    def load(*_):
        wait_until(lambda: seen)
        raise UnusableInput("base.model: no such thing")

    monkeypatch.setattr(reading, "read_rows", rows)
    monkeypatch.setattr(train, "load_model", load)
    assert run(directory) == 2
    (failed,) = events(directory, "failed")
    assert failed["message"] == "base.model: no such thing"


@pytest.mark.parametrize("held_up", ["rows", "held_out"])
def test_a_request_to_stop_is_obeyed_while_rows_are_read(tmp_path, monkeypatch, held_up):
    directory = short_run(tmp_path / "run")

    def rows(path):
        for number, row in enumerate(read_rows(path)):
            if path == getattr(directory, held_up) and number == 0:
                os.kill(os.getpid(), signal.SIGTERM)
                wait_until(lambda: events(directory, "stage"))
            yield row
            time.sleep(0.05)

    monkeypatch.setattr(reading, "read_rows", rows)
    assert run(directory) == 75
    assert events(directory, "stopping")[-1]["reason"] == "SIGTERM was received"
    ended = {event["stage"] for event in events(directory, "stage") if event["state"] == "end"}
    assert "samples" not in ended
