"""`codelupe doctor` on real databases and folders: its passes and the message of each failure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from psycopg2 import sql
from world import execute_outside, in_database

from db.pool import Pool
from service.cli import doctor
from service.cli.doctor import Finding, database_findings, disk_finding, examine, folders_finding
from service.settings.environment import PROJECT_RECIPES
from service.settings.home import Home
from service.settings.load import Settings, load_settings

ROOT = Path(__file__).parents[2]


def settings_for(home: Path, **environment: str) -> Settings:
    return load_settings(
        PROJECT_RECIPES / "embedded.yaml", environment={"CODELUPE_HOME": str(home), **environment}, env_file=None
    )


def by_check(findings: Any) -> dict[str, Finding]:
    return {finding.check: finding for finding in findings}


def test_a_machine_that_is_ready(database_url: str, tmp_path: Path) -> None:
    usual = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "WANDB_"))}
    program = "import sys; from service.cli.main import main; sys.argv = ['codelupe', 'doctor', '--json']; main()"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**usual, "DATABASE_URL": database_url, "CODELUPE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    names = [finding["check"] for finding in found]
    assert names[:6] == ["folders", "disk", "database", "rights", "migrations", "source"] and names[-1] == "wandb"
    assert {finding["state"] for finding in found} == {"ok", "note"}
    assert not any(finding["mend"] for finding in found)


def test_nothing_is_changed_in_the_database(postgres_url: str, tmp_path: Path) -> None:
    execute_outside(postgres_url, sql.SQL("create database bare"))
    url = in_database(postgres_url, "bare")
    found = by_check(database_findings(settings_for(tmp_path, DATABASE_URL=url)))
    assert found["migrations"].state == "note" and "0001_initial.sql" in found["migrations"].said
    assert "source" not in found
    pool = Pool(url)
    with pool.transaction(read_only=True) as cursor:
        cursor.execute("select to_regclass('codelupe.migrations'), to_regclass('code_files')")
        assert cursor.fetchone() == (None, None)
    pool.close()
    execute_outside(postgres_url, sql.SQL("drop database bare with (force)"))


@pytest.mark.parametrize(
    ("environment", "says", "mend"),
    [
        ({"DATABASE_URL": "postgresql://me:secret@127.0.0.1:9/code"}, "cannot be reached", "docker-compose up"),
        ({"SOURCE_TABLE": "elsewhere"}, "elsewhere does not exist", ".env"),
        ({"SOURCE_COLUMNS": "content=body"}, "column body", ".env"),
    ],
)
def test_what_is_wrong_with_the_database(
    database_url: str, tmp_path: Path, environment: dict[str, str], says: str, mend: str
) -> None:
    settings = settings_for(tmp_path, **{"DATABASE_URL": database_url, **environment})
    (failed,) = [finding for finding in database_findings(settings) if finding.state != "ok"]
    assert failed.state == "failed" and says in failed.said and mend in str(failed.mend)
    assert "secret" not in failed.said


def test_a_database_of_a_newer_version(database_url: str, tmp_path: Path, query: Any) -> None:
    query("insert into codelupe.migrations values ('9999_later.sql', '0')")
    found = by_check(database_findings(settings_for(tmp_path, DATABASE_URL=database_url)))
    assert found["migrations"].state == "failed" and "git pull" in str(found["migrations"].mend)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file where a folder should be")
    found = folders_finding(Home(tmp_path))
    assert found.state == "failed" and "chown" in str(found.mend) and str(tmp_path / "runs") in found.said


def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home(tmp_path)
    home.prepare()
    assert disk_finding(home).state == "ok"
    monkeypatch.setattr(Home, "free_bytes", lambda self: 1000)
    assert (disk_finding(home).state, disk_finding(home).mend) == ("failed", "codelupe stop; codelupe gc")


def test_a_trainer_that_does_not_finish(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "TRAINER_SECONDS", 0.01)
    last = list(examine(settings_for(tmp_path, DATABASE_URL=database_url)))[-1]
    assert (last.check, last.state) == ("trainer", "failed") and "no answer" in last.said
