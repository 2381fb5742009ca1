"""`codelupe gc`: what it removes, and that it never runs beside a service."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from service.cli import adapters as cli
from service.errors import PreconditionError
from service.publish.folders import retire
from service.settings.home import Home, only_service


@pytest.fixture
def home(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """The home folder of a service that never ran."""
    home = Home(tmp_path / "home")
    monkeypatch.setenv("CODELUPE_HOME", str(home.root))
    monkeypatch.setenv("DATABASE_URL", database_url)
    return home


def test_a_home_without_folders_has_nothing_to_remove(home: Home, capsys: pytest.CaptureFixture[str]):
    cli.gc()
    assert capsys.readouterr().out == "0 folders removed\n"


def test_a_service_that_starts_meanwhile_keeps_what_it_claims(home: Home, monkeypatch: pytest.MonkeyPatch):
    claim = home.runs / ".000001.tmp"
    database = cli.database

    @contextmanager
    def slow_to_start(*arguments: Any) -> Iterator[Any]:
        home.prepare()
        with database(*arguments) as pool, only_service(home):
            claim.mkdir()
            yield pool

    monkeypatch.setattr(cli, "database", slow_to_start)
    with pytest.raises(PreconditionError, match="a service already runs"):
        cli.gc()
    assert claim.exists()


def test_no_service_starts_while_it_removes(home: Home, monkeypatch: pytest.MonkeyPatch):
    def removing(*arguments: Any) -> list[Path]:
        with pytest.raises(PreconditionError, match="a service already runs"), only_service(home):
            pass
        return retire(*arguments)

    home.prepare()
    (home.runs / ".000001.tmp").mkdir()
    monkeypatch.setattr(cli, "retire", removing)
    cli.gc()
    assert list(home.runs.iterdir()) == []
    with only_service(home):
        pass
