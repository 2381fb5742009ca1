"""Fixtures for the serving tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from vllm_stand_in import StandIn

from service.settings.home import Home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path)
    home.prepare()
    return home


@pytest.fixture
def publish(home: Home) -> Callable[..., None]:
    """Return a function that writes an adapter folder. The stand-in answers with the given log probability."""

    def write(version: int, answers: float = -1.0) -> None:
        home.adapter(version).mkdir()
        (home.adapter(version) / "adapter_config.json").write_text(json.dumps({"answers": answers}))

    return write


@pytest.fixture
def vllm() -> Iterator[StandIn]:
    server = StandIn()
    yield server
    server.stop()
