"""Trains a run directory on a Ray cluster, and ends with the exit code of its run. (no torch)

    service ─ stdin, SIGTERM ─▶ driver ─ desk ─▶ worker of Ray Train ─ stdin ─▶ rank 0      on one machine
                                                 worker of Ray Train ─ stdin ─▶ rank 1      on another one

No two starts of a run train at once:
- The driver holds the run's lock, as any trainer, and the run's name in the cluster (trainer/cluster/desk.py).
- A driver that is gone may have ranks for some seconds more. cluster.json in the run directory names their machines.
  The next start asks each of them whether its ranks have ended, and waits for GONE_SECONDS for those that are lost.
A lock on the shared folder would not do: not every shared folder passes locks on to other machines.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import os
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from trainer.check import check_launcher
from trainer.cluster.attempt import Attempt, Ended
from trainer.cluster.desk import Desk
from trainer.cluster.machines import Machines
from trainer.cluster.storage import Storage
from trainer.cluster.worker import GONE_SECONDS, NAMESPACE, wait_for_ranks
from trainer.errors import ClusterFailed, UnusableInput
from trainer.ranks import POLL_SECONDS, report_cause
from trainer.recipe import Recipe
from trainer.records import append_event
from trainer.run_dir import RunDirectory, RunDirectoryError, read_json
from trainer.stop import StopRequest, write_stderr

MOST_LOST = 8
"""So many times a start goes on after it has lost a machine."""
CONNECT_SECONDS = 10.0
NAME_WAIT_SECONDS = 60.0
"""How long to wait until a driver that has just ended frees the run's name."""
END_SECONDS = 90.0
"""How long to wait for the ranks of an earlier start: they may be writing a checkpoint."""
PASSED_ON = (
    "HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_XET",
    "HF_HUB_DISABLE_PROGRESS_BARS", "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_ENTITY", "NCCL_DEBUG", "OMP_NUM_THREADS",
    "PYTHONUNBUFFERED", "TOKENIZERS_PARALLELISM", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "PYTORCH_ALLOC_CONF",
)  # fmt: skip
"""Variables that the ranks get from the driver. Paths and GPUs belong to a machine, and are not passed on."""


def drive(directory: RunDirectory, recipe: Recipe, stop: StopRequest) -> int:
    """Train on the cluster, and return the exit code of the run. The caller holds the lock.

    Raises:
        UnusableInput: Ray is not installed.
        ClusterFailed: the cluster cannot be reached, has too few machines, or lost too many.
        RunDirectoryError: another start trains this run.
        Stopped
    """
    ray = import_ray(recipe)
    name = run_name(directory)
    if recipe.distributed.storage is not None:
        Storage(recipe.distributed.storage, name)  # refused before anything is started
    with connected(ray, recipe.distributed.address), stop.deferred(), new_desk(ray, name, stop) as desk:
        stop.handle_signals()  # Ray has set its own
        machines = Machines(ray, recipe)
        for number in range(1, MOST_LOST + 2):
            wait_for_earlier(ray, directory, name, machines)
            processes = machines.wait_for_processes(stop)
            write_stderr(f"{processes} process{'es' * (processes != 1)} on the Ray cluster")
            with tempfile.TemporaryDirectory(prefix="codelupe-ray-") as folder:
                ended = Attempt(
                    ray,
                    desk,
                    directory,
                    name,
                    number,
                    processes,
                    machines.resources(),
                    passed_on(os.environ),
                    folder,
                    recipe.distributed.storage,
                ).run(stop)
            if ended.complete:
                directory.machines.unlink(missing_ok=True)
            if ended.code is not None:
                return report_cause(directory, ended.code, ended.rank, processes)
            stop.check()
            say_lost(directory, ended)
    raise ClusterFailed(f"The cluster lost a machine {MOST_LOST + 1} times. The next start resumes from the checkpoint")


def import_ray(recipe: Recipe) -> Any:
    """Import Ray. Raises UnusableInput if it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    check_launcher(recipe)
    try:
        ray = importlib.import_module("ray")
        importlib.import_module("ray.train")
        return ray
    except ImportError as error:
        raise UnusableInput(
            f"Ray Train cannot be used ({error}). Install it with `pip install 'codelupe[ray]'`"
        ) from error


@contextmanager
def connected(ray: Any, address: str) -> Iterator[None]:
    """Connect this process to the cluster. Its job ends with the block, or when the process is gone."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or address
    try:
        if address != "auto":  # Ray itself would try for minutes
            host, _, port = address.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
        ray.init(
            address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR,
            configure_logging=True,
        )  # fmt: skip
    except Exception as error:  # Ray has no common error for this
        raise ClusterFailed(
            f"distributed.address: no Ray cluster at {address} ({' '.join(str(error).split())[:300]}). "
            "Start one with `ray start --head`, and add this machine with `ray start --address=HOST:PORT --num-cpus=0`"
        ) from error
    try:
        yield
    except ray.exceptions.RayError as error:
        raise ClusterFailed(f"The Ray cluster failed ({' '.join(str(error).split())[:300]})") from error
    finally:
        ray.shutdown()


@contextmanager
def new_desk(ray: Any, name: str, stop: StopRequest) -> Iterator[Any]:
    """Start the desk on this machine, under the run's name.

    Raises:
        RunDirectoryError: another driver has that name.
    """
    here = ray.get_runtime_context().get_node_id()
    where = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node_id=here, soft=False)
    actor = ray.remote(Desk).options(name=name, namespace=NAMESPACE, num_cpus=0, scheduling_strategy=where)
    end = time.monotonic() + NAME_WAIT_SECONDS
    while True:
        stop.check()
        try:
            desk = actor.remote()
            break
        except ValueError as error:  # the name is taken
            if time.monotonic() > end:
                raise RunDirectoryError(f"{name} is trained by another start on this Ray cluster") from error
            time.sleep(POLL_SECONDS)
    try:
        yield desk
    finally:
        with suppress(ray.exceptions.RayError):
            ray.kill(desk)


def run_name(directory: RunDirectory) -> str:
    """Return the run's name in the cluster: the same wherever the same folder is started."""
    try:
        inputs = directory.manifest.read_bytes()
    except OSError:  # rank 0 reports it
        inputs = b""
    digest = hashlib.sha256(str(directory.root).encode() + b"\0" + inputs).hexdigest()
    return f"codelupe-{directory.root.name}-{digest[:16]}"


def wait_for_earlier(ray: Any, directory: RunDirectory, name: str, machines: Machines) -> None:
    """Wait until no rank of an earlier start, or of a lost attempt, can run.

    Raises:
        ClusterFailed: a rank still runs.
    """
    began = time.monotonic()
    try:
        nodes = dict(read_json(directory.machines)["machines"])
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError):  # it is written whole, so this is no half-written one
        nodes = {"": "unknown"}
    lost = [address for node, address in nodes.items() if not _ended(ray, name, node, address, machines)]
    if lost:
        left = began + GONE_SECONDS - time.monotonic()
        write_stderr(f"lost {', '.join(sorted(set(lost)))}: its processes end by themselves within {left:.0f} s")
        time.sleep(max(0.0, left))
    directory.machines.unlink(missing_ok=True)


def _ended(ray: Any, name: str, node: str, address: str, machines: Machines) -> bool:
    """Wait on a machine until its ranks have ended. Returns False if the machine is lost."""
    if node not in machines.alive():
        return False
    where = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node_id=node, soft=False)
    asked = ray.remote(wait_for_ranks).options(num_cpus=0, max_retries=0, scheduling_strategy=where)
    try:
        ended = ray.get(asked.remote(name, END_SECONDS), timeout=END_SECONDS + 30.0)
    except ray.exceptions.RayError:
        return False
    if not ended:
        raise ClusterFailed(f"A process of an earlier start of this run still runs on {address}. End it there")
    return True


def passed_on(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that the ranks get from the driver."""
    return {name: environment[name] for name in PASSED_ON if environment.get(name)}


def say_lost(directory: RunDirectory, ended: Ended) -> None:
    """Tell that the run goes on without a machine."""
    append_event(directory.events, "machine_lost", message=ended.why)
    write_stderr(f"{ended.why}. Going on from the last checkpoint")
