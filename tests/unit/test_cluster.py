"""A Ray cluster of two nodes on this machine trains a run: one result, one exit code, and nothing twice or left."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from run_folder import events, make_run, run, short_recipe, short_rows, short_run

from service.cycle.launch import TrainerProcess
from trainer.cluster import driver
from trainer.cluster.desk import Desk, Order, Word
from trainer.cluster.driver import passed_on, run_name
from trainer.cluster.machines import Machines, fitting
from trainer.cluster.worker import rank_variables, ranks_lock
from trainer.errors import ClusterFailed, RecipeError
from trainer.recipe_commands import prepare_command
from trainer.recipe_file import parse_recipe
from trainer.records import EventTail, read_outcomes
from trainer.run_dir import RunDirectoryError, write_json
from trainer.stop import StopRequest

ROOT = Path(__file__).parents[2]
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (make dev)")
TWO = {
    "lora__dropout": 0.0,
    "training__gradient_accumulation_steps": 1,
    "distributed__processes": 2,
    "distributed__launcher": "ray",
}


@pytest.fixture
def cluster(monkeypatch):
    """A head without CPUs, and two nodes with one CPU each."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    cluster.two = [cluster.add_node(num_cpus=1) for _ in range(2)]
    yield cluster
    cluster.shutdown()


def on(cluster, **overrides):
    return short_recipe(**TWO, **overrides, distributed__address=cluster.address)


def ranks(directory) -> dict[int, dict[str, str]]:
    """Return the processes that train a run, without the driver: their environment, by id."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode()
            environ = (path.parent / "environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(directory.root) in line and "CODELUPE_LOCK_HELD=1" in environ:
            found[int(path.parent.name)] = dict(item.partition("=")[::2] for item in environ.split("\0"))
    return found


def wait_for(directory, name: str, seconds: float = 150.0) -> None:
    tail, end = EventTail(directory.events), time.monotonic() + seconds
    while not any(event["event"] == name for event in tail.new()):
        assert time.monotonic() < end, directory.log.read_text()[-3000:]
        time.sleep(0.05)


def gone(directory, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while ranks(directory) and time.monotonic() < end:
        time.sleep(0.2)
    return not ranks(directory)


def trained_rows(directory) -> list[int]:
    return [row.file_id for row in read_outcomes(directory.rows_outcome) if row.outcome == "trained"]


# --- without a cluster ----------------------------------------------------------------------------------------


def test_ray_is_imported_only_by_the_driver():
    code = "import trainer.__main__, trainer.train, trainer.cluster.driver, sys; assert 'ray' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)


def test_without_ray_the_run_says_what_to_install_before_anything_is_loaded(tmp_path, monkeypatch):
    directory = short_run(tmp_path / "run", short_recipe(**TWO))
    monkeypatch.setitem(sys.modules, "ray", None)
    assert run(directory) == 2
    (failed,) = events(directory, "failed")
    assert "pip install 'codelupe[ray]'" in failed["message"]
    assert [event["event"] for event in events(directory)] == ["failed"]
    assert prepare_command(directory.recipe) == 2, "the service asks before it claims"


@needs_ray
@pytest.mark.parametrize("address", ["127.0.0.1:9", "nowhere:6379"])
def test_without_a_cluster_the_run_can_be_started_again(tmp_path, address):
    directory = short_run(tmp_path / "run", short_recipe(**TWO, distributed__address=address))
    process = subprocess.run(
        [sys.executable, "-m", "trainer", "run", str(directory.root)],
        cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert process.returncode == 1, process.stderr
    assert f"no Ray cluster at {address}" in process.stderr and "Traceback" not in process.stderr


@pytest.mark.parametrize(
    ("distributed", "expected"),
    [
        ({"address": "10.0.0.1:6379"}, "distributed.address: has no effect with launcher: process"),
        (
            {"launcher": "torchrun", "wait_seconds": 5},
            "distributed.wait_seconds: has no effect with launcher: torchrun",
        ),
        ({"launcher": "ray", "processes": 2, "least_processes": 3}, "least_processes: 3 is greater than"),
        ({"launcher": "ray", "gpus_per_process": 2}, "gpus_per_process: 2 is above the maximum, 1"),
    ],
)
def test_contradictions_are_named(distributed, expected):
    with pytest.raises(RecipeError, match=expected):
        parse_recipe({"name": "a", "stream": "a", "distributed": distributed}, where="the recipe")


def test_a_process_fits_where_all_its_resources_are():
    machines = [{"CPU": 8.0, "GPU": 4.0}, {"CPU": 2.0, "GPU": 4.0}, {"CPU": 64.0}]
    assert fitting(machines, {"CPU": 1.0, "GPU": 1.0}) == 6
    assert fitting(machines, {"CPU": 1.0}) == 74
    assert fitting([], {"CPU": 1.0}) == 0


def test_a_rank_of_an_earlier_attempt_is_told_to_end():
    desk = Desk()
    desk.give(Order(kind="go", attempt=2, meeting="host:1", environment={"HF_TOKEN": "secret"}))
    old, new = (Word(attempt=number, rank=0, node="a", meeting="host:1") for number in (1, 2))
    assert desk.hear(new).kind == "go"
    told = desk.hear(old)
    assert told.kind == "kill" and not told.environment
    assert desk.take() == [new, old] and desk.take() == []
    desk.hear(new)  # said again, because the answer was lost
    assert desk.take() == []


def test_ranks_get_no_paths_and_gpus_of_the_drivers_machine(monkeypatch):
    found = passed_on({"HF_TOKEN": "a", "PATH": "/x", "CUDA_VISIBLE_DEVICES": "7", "HF_HOME": "/y", "NCCL_DEBUG": ""})
    assert found == {"HF_TOKEN": "a"}
    order = Order(kind="go", attempt=1, meeting="fd00::1:400", environment=found)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert rank_variables(order, 5, 8, 1, 4)["LOCAL_RANK"] == "0", "its own GPU is the only one that it sees"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    variables = rank_variables(order, 5, 8, 1, 4)
    assert variables["LOCAL_RANK"] == "1" and variables["RANK"] == "5" and variables["HF_TOKEN"] == "a"
    assert (variables["MASTER_ADDR"], variables["MASTER_PORT"]) == ("fd00::1", "400")


def test_a_runs_name_depends_on_its_folder_and_inputs(tmp_path):
    one, two = (short_run(tmp_path / name, short_recipe()) for name in ("one", "two"))
    assert run_name(one) != run_name(two)
    before = run_name(one)
    one.manifest.write_text(one.manifest.read_text() + " ")
    assert run_name(one) != before


# --- on a cluster ---------------------------------------------------------------------------------------------


@needs_ray
@pytest.mark.long
@pytest.mark.timeout(600)
def test_two_nodes_give_the_result_of_one_process(tmp_path, cluster):
    one = short_run(tmp_path / "one", short_recipe(**(TWO | {"distributed__launcher": "process"})))
    two = short_run(tmp_path / "two", on(cluster))
    process = TrainerProcess(two, {})
    assert run(one) == 0
    assert process.wait(300) == 0, two.log.read_text()[-3000:]
    assert events(two, "started")[0]["world_size"] == 2
    for name in ("step", "evaluation"):
        expected, found = ([event["loss"] for event in events(which, name)] for which in (one, two))
        assert found == pytest.approx(expected, rel=1e-5), name
    assert one.rows_outcome.read_bytes() == two.rows_outcome.read_bytes()
    assert "[rank 1]" in two.log.read_text()
    assert not ranks(two) and not two.machines.exists()
    bad = make_run(tmp_path / "bad", on(cluster), short_rows(8), short_rows(4, start=101))
    bad.rows.write_text("")
    again = TrainerProcess(bad, {})
    assert again.wait(300) == 2, "the exit code of the ranks"
    assert "rows.jsonl has changed" in bad.log.read_text()


@needs_ray
@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_lost_node_is_a_restart_from_the_last_checkpoint(tmp_path, cluster):
    """One process less goes on. The rows are those of an undisturbed run."""
    how = {"evaluation__interval_fraction": 0.1, "training__num_epochs": 6}
    directory = short_run(tmp_path / "run", on(cluster, **how))
    process = TrainerProcess(directory, {})
    wait_for(directory, "checkpoint")
    cluster.remove_node(cluster.two[1], allow_graceful=False)
    assert process.wait(400) == 0, directory.log.read_text()[-3000:]
    assert len(events(directory, "machine_lost")) == 1
    started = events(directory, "started")
    assert [event["world_size"] for event in started] == [2, 1]
    assert started[1]["resumed_from_step"] >= 1
    steps = [event["step"] for event in events(directory, "step")]
    assert set(steps) == set(range(1, steps[-1] + 1)), "no step is left out"
    after = steps[len(steps) - (steps[-1] - started[1]["resumed_from_step"]) :]
    assert after == list(range(started[1]["resumed_from_step"] + 1, steps[-1] + 1)), "and none is made twice"
    whole = short_run(tmp_path / "whole", short_recipe(**(TWO | how | {"distributed__launcher": "process"})))
    assert run(whole) == 0
    assert trained_rows(directory) == trained_rows(whole)
    assert not ranks(directory)


@needs_ray
@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", ["service", "driver"])
def test_who_is_told_to_stop_stops_all(tmp_path, cluster, how):
    """The service closes the pipe: one checkpoint, code 75. The driver is killed: no rank is left, and it resumes."""
    directory = short_run(tmp_path / "run", on(cluster, training__num_epochs=40, evaluation__interval_fraction=0.01))
    process = TrainerProcess(directory, {})
    wait_for(directory, "checkpoint")
    assert len(ranks(directory)) == 2
    if how == "service":
        process._process.stdin.close()
        assert process.wait(60) == 75, directory.log.read_text()[-3000:]
        assert events(directory, "stopping") and not directory.machines.exists()
    else:
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait(10) == -9
        assert directory.machines.exists()
    assert gone(directory, 30)
    last = max(directory.checkpoints.glob("step-*"))
    again = TrainerProcess(directory, {})
    end = time.monotonic() + 150
    while len(events(directory, "started")) < 2:
        assert time.monotonic() < end, directory.log.read_text()[-3000:]
        time.sleep(0.1)
    assert events(directory, "started")[1]["resumed_from_step"] == int(last.name.partition("-")[2])
    again.ask_to_stop()
    assert again.wait(60) == 75
    assert gone(directory, 30)


@needs_ray
@pytest.mark.long
def test_no_two_starts_of_a_run_train_at_once(tmp_path, cluster, monkeypatch):
    """Another machine's start cannot see the lock. The name, the ranks' lock and the lost machines hold it back."""
    import ray

    directory, stop = short_run(tmp_path / "run", on(cluster)), StopRequest()
    name = run_name(directory)
    for constant in ("NAME_WAIT_SECONDS", "END_SECONDS", "GONE_SECONDS"):
        monkeypatch.setattr(driver, constant, 1.0)
    with driver.connected(ray, cluster.address):
        with (
            driver.new_desk(ray, name, stop),
            pytest.raises(RunDirectoryError, match="another start"),
            driver.new_desk(ray, name, stop),
        ):
            pass
        monkeypatch.setattr(driver, "NAME_WAIT_SECONDS", 30.0)
        with driver.new_desk(ray, name, stop):
            pass  # the name is free again
        machines = Machines(ray, on(cluster))
        node = next(iter(machines.alive()))
        with ranks_lock(name).open("a") as held:
            fcntl.flock(held, fcntl.LOCK_SH)
            driver.wait_for_earlier(ray, directory, name, machines)  # no earlier start
            write_json(directory.machines, {"machines": {node: "192.0.2.1"}})
            with pytest.raises(ClusterFailed, match=r"still runs on 192\.0\.2\.1"):
                driver.wait_for_earlier(ray, directory, name, machines)
            assert directory.machines.exists()
        driver.wait_for_earlier(ray, directory, name, machines)
        assert not directory.machines.exists()
        write_json(directory.machines, {"machines": {"0" * 56: "192.0.2.1"}})
        began = time.monotonic()
        driver.wait_for_earlier(ray, directory, name, machines)
        assert time.monotonic() - began >= 1.0 and not directory.machines.exists(), "a lost machine is waited out"


@needs_ray
@pytest.mark.long
def test_a_run_waits_for_machines_and_says_so(cluster):
    import ray

    recipe = short_recipe(
        **(TWO | {"distributed__processes": 3, "distributed__least_processes": 3, "distributed__wait_seconds": 1}),
        distributed__address=cluster.address,
    )
    with driver.connected(ray, cluster.address):
        with pytest.raises(ClusterFailed, match=r"room for 2 processes with 1 CPU each.*needs 3"):
            Machines(ray, recipe).wait_for_processes(StopRequest())
        cluster.add_node(num_cpus=1)
        assert Machines(ray, recipe).wait_for_processes(StopRequest()) == 3
