"""kill -9 of the trainer, the service or both during a run. No row is lost or trained twice."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from driver import Codelupe, wait_for

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Codelupe]:
    settings = {"MAX_DATASET_SIZE": "30", "MIN_NEW_FILES": "20", "SAMPLE_PREDICTIONS": "0"}
    service = Codelupe(tmp_path_factory.mktemp("kills"), **settings)
    service.up("--no-demo")
    yield service
    service.stop()


def feed(service: Codelupe, folder: Path, name: str) -> None:
    """Drop enough files for one run."""
    root = folder / name
    root.mkdir()
    for n in range(24):
        lines = "".join(f"    {name}_{i} = values[{i}] * {n + i}\n" for i in range(20))
        (root / f"file_{n}.py").write_text(f"def {name}_{n}(values):\n{lines}    return {name}_0\n")
    assert service.json("drop", str(root))["inserted"] == 24


def await_first_step(service: Codelupe) -> None:
    """Wait until the trainer makes optimizer steps."""
    wait_for(lambda: service.trainer_pid() and (service.metric("step") or 0) >= 1, "the first step", 120)


def await_verdict(service: Codelupe, before: int) -> dict[str, object]:
    """Wait for the run's verdict. Check the audit, and return it."""
    wait_for(lambda: sum(service.metric("runs").values()) > before, "a verdict", 200)
    wait_for(lambda: service.trainer_pid() is None, "the trainer's end", 30)
    found = service.json("audit")
    assert found["problems"] == []
    assert found["claimed"] == 0
    return found


def ended_runs(service: Codelupe) -> int:
    return sum(service.metric("runs").values())


@pytest.mark.long
def test_a_run_survives_a_killed_trainer(service: Codelupe, tmp_path: Path):
    before = ended_runs(service)
    feed(service, tmp_path, "first")
    await_first_step(service)
    service.kill_trainer()
    await_verdict(service, before)
    assert service.metric("runs")["published"] == 1
    assert service.json("runs")[0]["launches"] == 2


@pytest.mark.long
def test_a_run_survives_a_killed_service(service: Codelupe, tmp_path: Path):
    before = ended_runs(service)
    feed(service, tmp_path, "second")
    await_first_step(service)
    service.kill_service()
    wait_for(lambda: service.trainer_pid() is None, "the trainer to end after its service", 60)
    service.up("--no-demo")
    await_verdict(service, before)


@pytest.mark.long
def test_a_run_survives_when_both_are_killed(service: Codelupe, tmp_path: Path):
    before, files = ended_runs(service), service.json("audit")["total"]
    feed(service, tmp_path, "third")
    await_first_step(service)
    service.kill_trainer()
    service.kill_service()
    service.up("--no-demo")
    found = await_verdict(service, before)
    assert found["total"] == files + 24


@pytest.mark.long
def test_a_stopped_run_is_resumed(service: Codelupe, tmp_path: Path):
    before = ended_runs(service)
    feed(service, tmp_path, "fourth")
    await_first_step(service)
    assert service.stop().returncode == 0
    assert service.trainer_pid() is None
    service.up("--no-demo")
    await_verdict(service, before)
    assert service.json("runs")[0]["launches"] == 2
    assert service.json("runs")[0]["state"] in ("published", "refused")
