"""A real `docker-compose up trainer-cpu`: from a clean checkout to a published adapter, with kills and restarts.

The tests of this file share one stack. They run in order, once with each compose command.
"""

import subprocess
import sys
import time

import pytest
from stack import POSTGRES, ROOT, TRAINER, docker, state, wait_for

GRACE_SECONDS = 180


def test_up_becomes_healthy_and_publishes_on_the_bind_mount(stack):
    stack.up()
    wait_for(lambda: stack.published() >= 1, "the first adapter", 300)
    pointer = stack.folder / "models" / "tiny-codelupe"
    assert pointer.is_symlink()
    assert (pointer / "adapter_model.safetensors").stat().st_size > 0
    assert (pointer / "lineage.json").exists()


def test_files_dropped_from_the_host_are_trained_on(stack):
    done = subprocess.run(
        [sys.executable, "-c", "from service.cli.main import main; main()", "drop", str(ROOT / "service"), "--json"],
        cwd=stack.folder, capture_output=True, text=True, check=False,
        env={**stack.environment, "DATABASE_URL": stack.database_url(), "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr

    def trained() -> int:
        query = (
            "select count(*) from codelupe.ledger join code_files on id = file_id "
            "where repository = 'service' and disposition = 'trained'"
        )
        return int(psql(query))

    wait_for(lambda: trained() > 0, "rows from the host to be trained", 300)
    stack.assert_audit_is_clean()


def test_the_hardening_takes_effect(stack):
    status = docker("exec", TRAINER, "cat", "/proc/self/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert int(fields["CapEff"].strip(), 16) == 0
    assert int(fields["CapBnd"].strip(), 16) == 0
    assert fields["NoNewPrivs"].strip() == "1"
    assert docker("exec", TRAINER, "id", "-u") == "1000"
    for path in ("/x", "/app/x", "/opt/venv/x"):
        assert (
            "Read-only file system"
            in subprocess.run(
                ["docker", "exec", "--user", "0", TRAINER, "touch", path], capture_output=True, text=True, check=False
            ).stderr
        )
    assert docker("exec", TRAINER, "cat", "/proc/1/comm") == "docker-init"


def test_logs_show_the_address_and_the_verdict(stack):
    logs = stack.compose("logs", "--no-color", "trainer-cpu").stdout
    for part in ("· ready", "http://127.0.0.1:8093/health", "Verdict", "Saving adapter"):
        assert part in logs
    assert "coding_pass" not in logs


@pytest.mark.parametrize("container", [TRAINER, POSTGRES])
def test_a_killed_container_loses_nothing(stack, container):
    before = stack.published()
    stack.drop(90, f"kill_{container[-4:]}_{int(time.time())}")
    run = stack.wait_for_training(step=2)
    docker("kill", container)
    time.sleep(2)
    stack.up()
    wait_for(lambda: run_state(run) not in ("claimed", "training", "judging"), f"run {run} to end", 300)
    assert run_state(run) in ("published", "refused")
    stack.assert_audit_is_clean()
    assert stack.published() >= before


def test_a_crashed_trainer_is_restarted(stack):
    """The engine restarts a container after a crash, but not after `docker kill`."""
    restarts = int(docker("inspect", TRAINER, "--format", "{{.RestartCount}}"))
    docker("exec", TRAINER, "python", "-c", "import os, signal; os.kill(1, signal.SIGTERM)")
    wait_for(
        lambda: (
            int(docker("inspect", TRAINER, "--format", "{{.RestartCount}}")) > restarts
            and state(TRAINER)["Health"]["Status"] == "healthy"
        ),
        "the engine to restart it",
        180,
    )
    stack.assert_audit_is_clean()


def test_stop_while_training_ends_in_time_and_resumes(stack):
    stack.drop(30, f"stop_{int(time.time())}")
    run = stack.wait_for_training(step=2)
    before = launches(run)
    began = time.monotonic()
    stack.compose("stop", "trainer-cpu")
    assert time.monotonic() - began < GRACE_SECONDS
    assert state(TRAINER)["ExitCode"] == 0  # it ended by itself
    assert run_state(run) == "training"
    stack.up()
    wait_for(lambda: run_state(run) in ("published", "refused"), f"run {run} to be resumed", 300)
    assert launches(run) == before + 1
    stack.assert_audit_is_clean()


def test_restart_and_down_and_up_lose_nothing(stack):
    def facts() -> tuple[str, ...]:
        return psql("select count(*) from code_files"), psql("select count(*) from codelupe.adapters")

    wait_for(lambda: not stack.json("status")["live_run"], "the run to end", 300)
    before = facts()
    stack.compose("restart")
    stack.wait_until_healthy()
    assert facts() == before
    stack.down()
    stack.up()
    assert facts() == before
    stack.assert_audit_is_clean()
    stack.drop(30, f"down_{int(time.time())}")
    wait_for(lambda: facts()[1] > before[1], "the lineage to continue", 300)
    parents = psql("select coalesce(parent_version, 0) from codelupe.adapters order by version").split()
    assert [int(parent) for parent in parents] == [0, *versions()[:-1]]


def psql(query: str) -> str:
    """Run a query inside Postgres's container. Return its answer."""
    return docker(
        "exec", POSTGRES, "psql", "-h", "/var/run/postgresql", "-U", "coding_user", "-d", "coding_db", "-Atqc", query,
        check=True,
    )  # fmt: skip


def launches(run: int) -> int:
    return int(psql(f"select launches from codelupe.runs where run_id = {run}"))


def versions() -> list[int]:
    return [int(version) for version in psql("select version from codelupe.adapters order by version").split()]


def run_state(run: int) -> str:
    return psql(f"select state from codelupe.runs where run_id = {run}")
