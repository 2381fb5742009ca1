"""Several processes of one machine, as the service starts them: one result, one exit code, and no process left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from run_folder import events, same, short_recipe, short_run, weights

from service.cycle.launch import TrainerProcess
from trainer import ranks
from trainer.ranks import cause_of, ranks_for, report_cause
from trainer.recipe import step_samples
from trainer.recipe_file import parse_recipe
from trainer.records import EventTail
from trainer.run_dir import RunDirectory
from trainer.stop import StopRequest

ROOT = Path(__file__).parents[2]
TWO = {
    "lora__dropout": 0.0,
    "training__gradient_accumulation_steps": 1,
    "distributed__processes": 2,
    "distributed__launcher": "torchrun",
}


def alive(directory) -> dict[int, str]:
    """Return the processes whose command line names a run, by id."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if str(directory.root) in line:
            found[int(path.parent.name)] = (path.parent / "environ").read_bytes().decode(errors="replace")
    return found


def rank_pid(directory, rank: int) -> int:
    return next(pid for pid, environ in alive(directory).items() if f"\0RANK={rank}\0" in f"\0{environ}\0")


def wait_for(directory, name: str, seconds: float = 90.0) -> None:
    tail, end = EventTail(directory.events), time.monotonic() + seconds
    while not any(event["event"] == name for event in tail.new()):
        assert time.monotonic() < end, directory.log.read_text()[-3000:]
        time.sleep(0.02)


def gone(directory, seconds: float = 30.0) -> bool:
    end = time.monotonic() + seconds
    while alive(directory) and time.monotonic() < end:
        time.sleep(0.1)
    return not alive(directory)


@pytest.mark.parametrize(
    ("processes", "cards", "expected"),
    [("auto", 0, 1), ("auto", 3, 2), ("auto", 8, 4), (4, 0, 4), (4, 2, 2), (2, 8, 2)],
)
def test_how_many_processes_are_started(processes, cards, expected):
    """A step takes 2 × 2 samples with `auto`, and 2 × 2 × processes else."""
    recipe = short_recipe(distributed__processes=processes, distributed__launcher="torchrun")
    assert ranks_for(recipe, cards) == expected


def test_torchrun_alone_uses_all_gpus_and_does_not_change_the_step():
    recipe = parse_recipe({"name": "a", "stream": "a", "distributed": {"launcher": "torchrun"}}, where="the recipe")
    assert ranks_for(recipe, 8) == 8 and step_samples(recipe) == 16


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ({0: 0, 1: 0}, (0, 0)),
        ({0: 75, 1: 75}, (75, 0)),
        ({0: 1, 1: -9}, (-9, 1)),
        ({0: 1, 1: 75}, (75, 1)),
        ({0: 1, 1: 3}, (3, 1)),
        ({0: 2, 1: -15}, (2, 0)),
        ({0: 0, 1: 1}, (1, 1)),
    ],
)
def test_the_exit_code_is_that_of_the_cause(codes, expected):
    assert cause_of(codes) == expected


def test_an_event_that_cannot_be_written_leaves_the_exit_code(tmp_path, capfd):
    directory = RunDirectory(tmp_path)
    directory.events.mkdir()  # stands for a full disk
    assert report_cause(directory, -9, 1, 2) == -9
    assert "process 1 of 2 was killed by SIGKILL" in capfd.readouterr().err


def test_a_process_that_waits_for_one_that_is_gone_is_killed(monkeypatch):
    monkeypatch.setattr(ranks, "SETTLE_SECONDS", 0.2)
    monkeypatch.setattr(ranks, "STOP_SECONDS", 0.2)
    failed, waiting = (
        subprocess.Popen(["sh", "-c", command], stdin=subprocess.PIPE) for command in ("exit 7", "exec sleep 60")
    )
    both = ranks.Ranks([failed, waiting])
    began = time.monotonic()
    try:
        both.wait(StopRequest())
        assert waiting.poll() is None and time.monotonic() - began < 20
    finally:
        both.kill()
    assert waiting.returncode == -signal.SIGKILL
    assert cause_of(both.codes) == (7, 0), "what was ended because of another is no cause"


def test_a_rank_whose_launcher_is_gone_is_killed_after_its_limit():
    """It waits for another one in a call that no signal ends."""
    code = """
import os, sys
from trainer.stop import StopRequest
stop = StopRequest()
with stop.deferred():
    stop.listen(most_seconds=0.3)
    os.read(int(sys.argv[1]), 1)
"""
    reader, writer = os.pipe()
    rank = subprocess.Popen(
        [sys.executable, "-c", code, str(reader)], cwd=ROOT, stdin=subprocess.PIPE, pass_fds=(reader,)
    )
    try:
        rank.stdin.close()
        assert rank.wait(20) == -signal.SIGKILL
    finally:
        rank.kill()
        os.close(reader)
        os.close(writer)


@pytest.mark.long
def test_a_killed_process_ends_all_and_the_run_resumes(tmp_path):
    directory = short_run(tmp_path / "run", short_recipe(**TWO, evaluation__interval_fraction=0.2))
    process = TrainerProcess(directory, {})
    wait_for(directory, "checkpoint")
    os.kill(rank_pid(directory, 1), signal.SIGKILL)
    assert process.wait(40) == -signal.SIGKILL
    assert "process 1 of 2 was killed by SIGKILL" in events(directory, "failed")[-1]["message"]
    assert "[rank 0]" in directory.log.read_text()
    assert gone(directory)
    again = TrainerProcess(directory, {})
    assert again.wait(120) == 0, directory.log.read_text()[-3000:]
    assert events(directory, "started")[1]["resumed_from_step"] >= 1
    whole = short_run(tmp_path / "whole", short_recipe(**TWO, evaluation__interval_fraction=0.2))
    assert TrainerProcess(whole, {}).wait(120) == 0
    assert same(weights(whole.adapter), weights(directory.adapter))


@pytest.mark.long
@pytest.mark.parametrize("how", ["service", "launcher", "rank"])
def test_who_is_told_to_stop_stops_all(tmp_path, how):
    """The service closes the pipe, the launcher is killed, or one process alone gets SIGTERM."""
    directory = short_run(tmp_path / "run", short_recipe(**TWO, training__num_epochs=40))
    process = TrainerProcess(directory, {})
    wait_for(directory, "step")
    if how == "service":
        process._process.stdin.close()
    elif how == "launcher":
        os.kill(process.pid, signal.SIGKILL)
    else:
        os.kill(rank_pid(directory, 1), signal.SIGTERM)
    assert process.wait(40) == (-9 if how == "launcher" else 75), directory.log.read_text()[-3000:]
    assert gone(directory)
    assert events(directory, "stopping") and list(directory.checkpoints.glob("step-*"))


@pytest.mark.long
def test_unusable_input_of_several_processes_is_code_2(tmp_path):
    directory = short_run(tmp_path / "run", short_recipe(**TWO))
    directory.rows.write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "trainer", "run", str(directory.root)],
        cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "[rank 1]" in done.stderr and "Traceback" not in done.stderr
