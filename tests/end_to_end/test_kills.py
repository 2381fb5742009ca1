"""kill -9 of the trainer, of the service, and of both, each during a run: nothing lost, nothing trained twice."""

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
    """Enough files for one run."""
    root = folder / name
    root.mkdir()
    for n in range(24):
        lines = "".join(f"    {name}_{i} = values[{i}] * {n + i}\n" for i in range(20))
        (root / f"file_{n}.py").write_text(f"def {name}_{n}(values):\n{lines}    return {name}_0\n")
    assert service.json("drop", str(root))["inserted"] == 24


def mid_fit(service: Codelupe) -> None:
    """Wait until optimizer steps are being made."""
    wait_for(lambda: service.trainer_pid() and (service.metric("step") or 0) >= 1, "the first step", 120)


def finished(service: Codelupe, before: int) -> dict[str, object]:
    """The run came to a verdict, and the books are right."""
    wait_for(lambda: sum(service.metric("runs").values()) > before, "a verdict", 200)
    wait_for(lambda: service.trainer_pid() is None, "the trainer's end", 30)
    found = service.json("audit")
    assert found["problems"] == []
    assert found["claimed"] == 0
    return found


def ended(service: Codelupe) -> int:
    return sum(service.metric("runs").values())


def test_a_run_survives_a_killed_trainer(service: Codelupe, tmp_path: Path):
    before = ended(service)
    feed(service, tmp_path, "first")
    mid_fit(service)
    service.kill_trainer()
    finished(service, before)
    assert service.metric("runs")["published"] == 1
    assert service.json("runs")[0]["launches"] == 2


def test_a_run_survives_a_killed_service(service: Codelupe, tmp_path: Path):
    before = ended(service)
    feed(service, tmp_path, "second")
    mid_fit(service)
    service.kill_service()
    wait_for(lambda: service.trainer_pid() is None, "the trainer to follow its service", 60)
    service.up("--no-demo")
    finished(service, before)


def test_a_run_survives_when_both_are_killed(service: Codelupe, tmp_path: Path):
    before = ended(service)
    feed(service, tmp_path, "third")
    mid_fit(service)
    service.kill_trainer()
    service.kill_service()
    service.up("--no-demo")
    found = finished(service, before)
    assert found["total"] == 72


def test_a_stopped_run_is_resumed(service: Codelupe, tmp_path: Path):
    before = ended(service)
    feed(service, tmp_path, "fourth")
    mid_fit(service)
    assert service.stop().returncode == 0
    assert service.trainer_pid() is None
    service.up("--no-demo")
    finished(service, before)
    assert service.json("runs")[0]["launches"] == 2
    assert service.json("runs")[0]["state"] in ("published", "refused")
