"""Row 29: a node of the Ray cluster that trains a run is killed at a random moment.

The cluster is one of Ray's own test clusters: a head without CPUs and nodes with one CPU, all on this machine. Two
processes train each run, with the real trainer and the tiny model. In half of the trials a third node takes the place
of the lost one, and the run must end as one that nobody killed, to the bit. In the others one process goes on alone.
It may add up gradients in another order, so losses and weights need only be near.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from killed_ranks import (
    RECIPE,
    RUN_SECONDS,
    Whole,
    await_moment,
    check_as_whole,
    claimed_inputs,
    copy_inputs,
    events_of,
    processes_of,
    steps_that_count,
    train_whole,
)
from kills import real_options, send_signal
from oracle import Broken
from rows import Done, Row, Trials
from safetensors.torch import load_file
from scene import scene, server

from service.cycle.launch import TrainerProcess
from trainer.cluster.worker import GONE_SECONDS
from trainer.records import read_outcomes
from trainer.run_dir import RunDirectory, read_json

RUNS = 20
LOSS_DIFFERENCE = 0.02
"""As a share of the loss, where one process goes on alone."""
WEIGHT_DIFFERENCE = 1e-6
"""The same for the whole adapter: the norm of the difference, as a share of the norm."""


@contextmanager
def ray_cluster() -> Iterator[Any]:
    """Start a head without CPUs."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        yield cluster
    finally:
        cluster.shutdown()


def have_nodes(cluster: Any, number: int) -> None:
    """Add or remove nodes with one CPU each until there are so many."""
    while len(cluster.worker_nodes) > number:
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    while len(cluster.worker_nodes) < number:
        cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()


def kill_node(cluster: Any, run: RunDirectory, chance: random.Random) -> None:
    """Kill the raylet of a node. It is one that trains the run, if the driver has named them."""
    nodes = sorted(cluster.worker_nodes, key=lambda node: node.node_id)
    try:
        training = read_json(run.machines)["machines"]
    except FileNotFoundError:  # the processes have not met yet, or they have ended
        training = {}
    cluster.remove_node(
        chance.choice([node for node in nodes if node.node_id in training] or nodes), allow_graceful=False
    )


def none_left(run: RunDirectory) -> float:
    """Wait until no process of a run is left. Returns the seconds.

    Raises:
        Broken: some stay longer than those of a lost machine may.
    """
    began = time.monotonic()
    while left := processes_of(run.root):
        if time.monotonic() > began + GONE_SECONDS:
            send_signal(sorted(left), signal.SIGKILL)
            raise Broken(f"the run has ended, and processes are left: {sorted(left)}")
        time.sleep(0.05)
    return time.monotonic() - began


def check_near(run: RunDirectory, whole: Whole) -> int:
    """Compare a run that one process finished with one of two processes. Returns how many steps were made again.

    Raises:
        Broken: they differ by more than the order of sums explains.
    """
    (expected, _), (found, again) = steps_that_count(whole.run), steps_that_count(run)
    if [step for step, _ in found] != [step for step, _ in expected]:
        raise Broken(f"the steps {[step for step, _ in found]} instead of 1 to {len(expected)}")
    for (step, ours), (_, theirs) in zip(found, expected, strict=True):
        if abs(ours - theirs) > LOSS_DIFFERENCE * theirs:
            raise Broken(f"step {step}: a loss of {ours} instead of {theirs}")
    if sorted(map(str, read_outcomes(run.rows_outcome))) != sorted(map(str, read_outcomes(whole.run.rows_outcome))):
        raise Broken(f"{run.rows_outcome} differs from that of a run that was not killed")
    if (difference := adapter_difference(run, whole)) > WEIGHT_DIFFERENCE:
        raise Broken(f"the adapter differs by {difference:.2g} of its norm from that of a run that was not killed")
    return again


def adapter_difference(run: RunDirectory, whole: Whole) -> float:
    """Return the norm of the difference of two adapters, as a share of the norm."""
    ours, theirs = (
        torch.cat([tensor.flatten().double() for _, tensor in sorted(load_file(path).items())])
        for path in (directory.adapter / "adapter_model.safetensors" for directory in (run, whole.run))
    )
    return float((ours - theirs).norm() / theirs.norm())


def killed_node(whole: Whole, root: Path, cluster: Any, chance: random.Random, *, spare: bool) -> Done:
    """Kill one node of a run, and compare the run's end with a run whose nodes all lived."""
    have_nodes(cluster, 3 if spare else 2)
    run = copy_inputs(whole.inputs, root)
    moment = chance.uniform(0, 0.9 * whole.seconds)
    process = TrainerProcess(run, {})
    try:
        killed = await_moment(run, process, moment)
        if killed:
            kill_node(cluster, run, chance)
        if (code := process.wait(RUN_SECONDS)) != 0:
            raise Broken(f"{run.root} ended with {code}: {run.log.read_text()[-2000:]}")
    finally:
        process.kill()
    left = none_left(run)
    worlds = [event["world_size"] for event in events_of(run) if event["event"] == "started"]
    alone = worlds[-1] == 1
    if spare and alone:
        raise Broken(f"one process went on, although a node was free: {worlds}")
    again = check_near(run, whole) if alone else check_as_whole(run, whole, run.adapter)
    near = f", {adapter_difference(run, whole):.2g} of the adapter's norm apart" if alone else ""
    shutil.rmtree(root)
    note = (
        f"after {moment:.1f} s, with {'a' if spare else 'no'} free node: processes {worlds}, {again} steps made again"
    )
    return Done(count=int(killed), note=f"{note}, none left after {left:.1f} s{near}")


@contextmanager
def killed_nodes(folder: Path, sample: bool) -> Iterator[Trials]:
    with ray_cluster() as cluster:
        recipe = RECIPE | {
            "distributed.launcher": "ray",
            "distributed.address": cluster.address,
            "lora.dropout": 0.0,  # each process draws its own, so that one process trains differently
        }
        with server(folder / "postgres") as url, scene(folder / "prepare", url, "prepare") as one:
            inputs = claimed_inputs(one, folder / "inputs", real_options(one), recipe)
        have_nodes(cluster, 2)
        whole = train_whole(inputs, folder / "whole")

        def trial(number: int) -> Done:
            chance = random.Random(number)
            return killed_node(whole, folder / f"trial{number}", cluster, chance, spare=number % 2 == 0)

        yield Trials(number=1 if sample else RUNS, run=trial)


ROWS = {
    29: Row(fault="a node of the Ray cluster is killed at a random moment of a run of two processes", unit="kills",
            passes="none left, the run goes on; each step and row once. With a free node the adapter of a run whose "
            "nodes lived, else one near it", prepare=killed_nodes),
}  # fmt: skip
