"""Fixtures for the end-to-end tests."""

from collections.abc import Iterator

import pytest
from driver import Codelupe


@pytest.fixture(scope="module")
def codelupe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Codelupe]:
    """Yield a service folder for one test file. The service is stopped at the end."""
    service = Codelupe(
        tmp_path_factory.mktemp("home"),
        CODELUPE_RECIPE="embedded",
        MAX_DATASET_SIZE="40",
        SAMPLE_PREDICTIONS="1",
        MAX_CONTENT_CHARS="4000",
    )
    yield service
    service.stop()
