"""The files of docs/scaling/ train a run directory: checked by Slurm, by Kubernetes' schema, and under torchrun."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from run_folder import events, run, same, short_recipe, short_run, weights

ROOT = Path(__file__).parents[2]
SBATCH, JOB = ROOT / "docs/scaling/slurm.sbatch", ROOT / "docs/scaling/kubernetes-job.yaml"
needs_slurm = pytest.mark.skipif(
    not all(map(shutil.which, ("slurmctld", "slurmd", "sbatch"))),
    reason="Slurm is not installed (apt-get install slurmctld slurmd slurm-client)",
)
TWO = {"lora__dropout": 0.0, "training__gradient_accumulation_steps": 1, "distributed__processes": 2}
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
MpiDefault=none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
GresTypes=gpu
SlurmdParameters=config_overrides
NodeName=127.0.0.[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{ports[1]}-{ports[2]}] CPUs=32 Gres=gpu:8
PartitionName=all Nodes=ALL Default=YES State=UP
"""


def free_ports(count: int) -> list[int]:
    """Return ports in a row, which Slurm wants for the nodes of one line."""
    while True:
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(socket.socket())
            first.bind(("127.0.0.1", 0))
            ports = [first.getsockname()[1] + number for number in range(count)]
            try:
                for port in ports[1:]:
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return ports


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """Yield the environment of a Slurm cluster: two nodes with 32 CPUs and 8 GPUs each, which are this machine."""
    folder, host = tmp_path_factory.mktemp("slurm"), socket.gethostname().partition(".")[0]
    user = "root" if os.getuid() == 0 else os.environ["USER"]
    (folder / "state").mkdir()
    for number in range(8):
        (folder / f"gpu{number}").touch()
    (folder / "gres.conf").write_text(f"NodeName=127.0.0.[1-2] Name=gpu File={folder}/gpu[0-7]\n")
    file = folder / "slurm.conf"
    file.write_text(CONFIGURATION.format(host=host, ports=free_ports(3), user=user, folder=folder))
    environment = {**os.environ, "SLURM_CONF": str(file)}
    commands = [["slurmctld", "-D", "-c"], *(["slurmd", "-D", "-N", f"127.0.0.{number}"] for number in (1, 2))]
    log = (folder / "log").open("wb")
    started = [subprocess.Popen(command, env=environment, stdout=log, stderr=log) for command in commands]
    end = time.monotonic() + 30
    while (
        "2"
        not in subprocess.run(
            ["sinfo", "-h", "-t", "idle", "-o", "%D"], env=environment, capture_output=True, text=True
        ).stdout
    ):
        assert time.monotonic() < end, (folder / "log").read_text()[-2000:]
        time.sleep(0.2)
    yield environment
    for process in reversed(started):
        process.terminate()
        process.wait(20)


def dry_run(file: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sbatch", "--test-only", str(file), "/tmp/run"], env=environment, capture_output=True, text=True, timeout=60
    )


@needs_slurm
def test_slurm_accepts_the_script(slurm, tmp_path):
    done = dry_run(SBATCH, slurm)
    assert done.returncode == 0, done.stderr
    assert "using 64 processors on nodes" in done.stderr
    wrong = tmp_path / "wrong"
    wrong.write_text(SBATCH.read_text().replace("--gpus-per-node=8", "--gpus-per-node=9"))
    assert dry_run(wrong, slurm).returncode != 0, "the dry run looks at the machines"


@needs_slurm
@pytest.mark.long
def test_slurm_trains_a_run_on_two_nodes_after_a_stop(slurm, tmp_path):
    directory = short_run(tmp_path / "run", short_recipe(**TWO, training__num_epochs=4))
    log, environment = tmp_path / "log", {**slurm, "VIRTUAL_ENV": str(Path(sys.executable).parents[1])}
    environment["PYTHONPATH"] = str(ROOT)
    options = [
        "--gpus-per-node=1",
        "--cpus-per-task=1",
        f"--output={log}",
        "--open-mode=append",
        "--wait",
        "--parsable",
    ]
    command = ["sbatch", *options, str(SBATCH), str(directory.root)]
    first = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    job, end = first.stdout.readline().strip(), time.monotonic() + 120
    while not events(directory, "step"):
        assert time.monotonic() < end, log.read_text()[-3000:]
        time.sleep(0.1)
    subprocess.run(["scancel", "--signal=TERM", job], env=environment, check=True)
    assert first.wait(60) != 0
    stopped = max(event["step"] for event in events(directory, "step"))
    assert events(directory, "stopping") and (directory.checkpoints / f"step-{stopped:06d}").is_dir()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr + log.read_text()[-3000:]
    assert [event["world_size"] for event in events(directory, "started")] == [2, 2]
    assert events(directory, "started")[1]["resumed_from_step"] == stopped and directory.report.exists()


def test_the_kubernetes_job_has_only_known_keys(tmp_path):
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed (make dev)")
    service, job = yaml.safe_load_all(JOB.read_text())
    version = validate.latest_version()
    for part in (service, job):
        validate.validate(part, version, strict=True)
    job["spec"]["completionMod"] = job["spec"].pop("completionMode")
    with pytest.raises(validate.ValidationError):
        validate.validate(job, version, strict=True)


def test_the_kubernetes_job_starts_as_many_machines_as_it_says():
    service, job = yaml.safe_load_all(JOB.read_text())
    spec, name = job["spec"], job["metadata"]["name"]
    (container,) = spec["template"]["spec"]["containers"]
    command = container["command"]
    assert f"--nnodes={spec['completions']}" in command and spec["parallelism"] == spec["completions"]
    assert f"--nproc-per-node={container['resources']['limits']['nvidia.com/gpu']}" in command
    port = service["spec"]["ports"][0]["port"]
    subdomain = spec["template"]["spec"]["subdomain"]
    assert subdomain == service["metadata"]["name"] and service["spec"]["selector"] == {"job-name": name}
    assert f"--rdzv-endpoint={name}-0.{subdomain}:{port}" in command
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert command[-1].startswith(mounts["data"]), "the run directory is on the shared volume"


@pytest.mark.long
def test_two_agents_of_torchrun_train_one_run(tmp_path):
    """As on two machines: each has an agent, and they find each other at one address."""
    one, two = (short_run(tmp_path / name, short_recipe(**TWO)) for name in ("one", "two"))
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1",
               "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "1",
               "-m", "trainer", "run", str(two.root)]  # fmt: skip
    agents = [
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for _ in range(2)
    ]
    outputs = [agent.communicate(timeout=200)[0].decode() for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], outputs
    assert events(two, "started")[0]["world_size"] == 2 and len(events(two, "started")) == 1
    assert run(one) == 0
    expected, found = ([event["loss"] for event in events(which, "step")] for which in (one, two))
    assert found == pytest.approx(expected, rel=1e-4)
    assert not same(weights(two.adapter), {}) and one.rows_outcome.read_bytes() == two.rows_outcome.read_bytes()
