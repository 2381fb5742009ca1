"""The folder of an evaluation goes on after a kill, and refuses what it cannot go on with."""

from __future__ import annotations

import pytest

from trainer.errors import UnusableInput
from trainer.evaluate.engines import Generation
from trainer.evaluate.results import Judgement, Results, open_results, read_results

SETTINGS = {"suite": "humaneval", "temperature": 0.5, "adapter": None}


def answer(number: int) -> Generation:
    return Generation(task_id=f"T/{number}", sample=0, text="pass\u2028", tokens=1, seconds=0.1, finish="stop")


def test_appended_answers_are_read_again(tmp_path):
    with open_results(tmp_path / "a", SETTINGS) as results:
        results.append(results.generations, [answer(1)])
        results.append(results.outcomes, [Judgement(task_id="T/1", sample=0, passed=True, reason="")])
    with open_results(tmp_path / "a", SETTINGS) as results:
        results.append(results.generations, [answer(2)])
        assert results.read_generations() == {("T/1", 0): answer(1), ("T/2", 0): answer(2)}
        assert results.read_outcomes()[("T/1", 0)].passed


@pytest.mark.parametrize("torn", ['{"task_id":"T/2","sam', "{", "\x00\x00"])
def test_a_torn_last_line_is_dropped(tmp_path, torn):
    with open_results(tmp_path, SETTINGS) as results:
        results.append(results.generations, [answer(1)])
    with results.generations.open("a") as file:
        file.write(torn)
    with open_results(tmp_path, SETTINGS) as results:
        assert list(results.read_generations()) == [("T/1", 0)]
        results.append(results.generations, [answer(2)])
        assert len(results.read_generations()) == 2


def test_other_settings_are_refused_with_the_way_out(tmp_path):
    with open_results(tmp_path, SETTINGS):
        pass
    message = r"temperature 0.5, now 0.9.*--to"
    with pytest.raises(UnusableInput, match=message), open_results(tmp_path, {**SETTINGS, "temperature": 0.9}):
        pass
    with pytest.raises(UnusableInput, match="top_p None, now 1"), open_results(tmp_path, {**SETTINGS, "top_p": 1}):
        pass


def test_a_folder_with_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UnusableInput, match=r"holds notes.txt.*--to"), open_results(tmp_path, SETTINGS):
        pass
    with pytest.raises(UnusableInput, match="cannot be used"), open_results(tmp_path / "notes.txt", SETTINGS):
        pass


def test_two_processes_do_not_share_a_folder(tmp_path):
    with (
        open_results(tmp_path, SETTINGS),
        pytest.raises(UnusableInput, match="Wait for the other evaluation"),
        open_results(tmp_path, SETTINGS),
    ):
        pass


def test_the_summary_marks_the_end(tmp_path):
    with open_results(tmp_path, SETTINGS) as results:
        with pytest.raises(UnusableInput, match="not finished"):
            read_results(tmp_path)
        results.write_summary({"tasks": 1})
    assert read_results(tmp_path).summary.is_file()
    with open_results(tmp_path, SETTINGS) as results:
        assert not results.summary.exists(), "while it goes on, it is not finished"
    with pytest.raises(UnusableInput, match="not the folder of an evaluation"):
        read_results(tmp_path / "missing")


def test_a_damaged_line_is_named(tmp_path):
    with open_results(tmp_path, SETTINGS) as results:
        results.generations.write_text('{"task_id": 1}\n')
    with pytest.raises(UnusableInput, match=r"generations.jsonl cannot be read"):
        Results(tmp_path).read_generations()
