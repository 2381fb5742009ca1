"""Fixtures for the engine, the images and a stack. `make containers` runs these tests. Without an engine they skip."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from stack import INIT, POSTGRES, TRAINER, Stack, checkout, compose_commands, docker


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.containers)
            item.add_marker(pytest.mark.timeout(1800))


@pytest.fixture(scope="session")
def engine() -> None:
    """Skip the test without a running Docker engine and a compose command."""
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "info"], capture_output=True, check=False).returncode
    ):
        pytest.skip("no Docker engine answers")
    if not compose_commands():
        pytest.skip("neither docker-compose nor docker compose is installed")


@pytest.fixture(scope="session")
def free_names(engine: None) -> None:
    """Skip the test if containers with the compose file's fixed names exist. They could hold a user's data."""
    names = set(docker("ps", "-a", "--format", "{{.Names}}").split())
    if taken := names & {INIT, POSTGRES, TRAINER, "codelupe-qwen-5090"}:
        pytest.skip(f"containers with these names exist and could hold a user's data: {sorted(taken)}")


@pytest.fixture(scope="session")
def cpu_image(engine: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Build the CPU image as the README describes."""
    command = next(iter(compose_commands().values()))
    Stack(checkout(tmp_path_factory.mktemp("build")), command).compose("build", "trainer-cpu", timeout=1500)
    return "codelupe-qwen-cpu:latest"


@pytest.fixture(scope="module", params=["v1", "v2"])
def compose(request: pytest.FixtureRequest, engine: None) -> list[str]:
    """Return each installed compose command in turn."""
    found = compose_commands()
    if request.param not in found:
        pytest.skip(f"compose {request.param} is not installed")
    return found[request.param]


@pytest.fixture(scope="module")
def stack(
    compose: list[str], free_names: None, cpu_image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """Yield the stack of a fresh checkout. Its containers and volumes are removed at the end."""
    stack = Stack(checkout(tmp_path_factory.mktemp("codelupe")), compose, {"MAX_DATASET_SIZE": "40"})
    yield stack
    stack.down("--volumes")
