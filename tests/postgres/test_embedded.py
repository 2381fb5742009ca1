"""The embedded Postgres: start, find, stop, and everything that can go wrong."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing import get_context
from multiprocessing.queues import Queue
from pathlib import Path

import psycopg2
import pytest

from db import embedded, server_user
from db.errors import EmbeddedDatabaseError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def fresh() -> Iterator[Path]:
    """A place for a data folder."""
    parent = Path(tempfile.mkdtemp(prefix="codelupe-tests-"))
    yield parent / "a b"
    embedded.stop(parent / "a b")
    shutil.rmtree(parent)


def answer(url: str, statement: str = "select current_database()") -> object:
    connection = psycopg2.connect(url)
    with connection, connection.cursor() as cursor:
        cursor.execute(statement)
        row = cursor.fetchone()
    connection.close()
    return row[0] if row else None


def postmaster(folder: Path) -> int:
    return int((folder / "pgdata" / "postmaster.pid").read_text().split("\n", 1)[0])


def python(code: str, **options: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", f"from pathlib import Path; from db import embedded\n{code}"],
        env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
    )  # fmt: skip


def test_start_find_stop(fresh: Path) -> None:
    assert embedded.running_url(fresh) is None
    assert not fresh.exists()
    assert not embedded.stop(fresh)
    url = embedded.start(fresh)
    assert answer(url) == "codelupe"
    assert answer(url, "show listen_addresses") == ""
    assert answer(url, "show server_encoding") == "UTF8"
    pid = postmaster(fresh)
    assert embedded.start(fresh) == url == embedded.running_url(fresh)
    assert postmaster(fresh) == pid
    assert embedded.stop(fresh)
    assert embedded.running_url(fresh) is None
    assert not embedded.stop(fresh)
    assert answer(embedded.start(fresh)) == "codelupe"


def test_one_server_however_the_folder_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = embedded.start(folder)
    link = folder.parent / "link"
    link.symlink_to(folder)
    monkeypatch.chdir(folder.parent)
    assert embedded.start(link) == embedded.start(Path("a b")) == url
    assert embedded.stop(Path("link"))


def test_the_socket_is_private(folder: Path) -> None:
    url = embedded.start(folder)
    socket_folder = Path(psycopg2.extensions.parse_dsn(url)["host"])
    assert stat.S_IMODE(socket_folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "pgdata").stat().st_mode) == 0o700


def test_a_deep_path(folder: Path) -> None:
    deep = folder / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    (folder / "pgdata").rename(deep / "pgdata")
    url = embedded.start(deep)
    socket_folder = Path(psycopg2.extensions.parse_dsn(url)["host"])
    assert len(str(socket_folder)) < 60
    assert stat.S_IMODE(socket_folder.stat().st_mode) == 0o700
    assert answer(url) == "codelupe"
    assert embedded.stop(deep)
    shutil.rmtree(socket_folder)


def test_it_outlives_its_starter_and_the_next_client(folder: Path) -> None:
    starter = python(f"import time\nprint(embedded.start(Path({str(folder)!r})), flush=True)\ntime.sleep(60)")
    assert starter.stdout is not None
    url = starter.stdout.readline().strip()
    starter.kill()
    starter.wait()
    client = python(f"assert embedded.start(Path({str(folder)!r})) == {url!r}")
    assert client.wait() == 0, client.communicate()
    assert answer(url) == "codelupe"
    stopper = python(f"assert embedded.stop(Path({str(folder)!r}))")
    assert stopper.wait() == 0, stopper.communicate()
    assert embedded.running_url(folder) is None


def test_the_terminals_interrupt_does_not_reach_it(folder: Path) -> None:
    starter = python(
        f"import time\nprint(embedded.start(Path({str(folder)!r})), flush=True)\ntime.sleep(60)",
        start_new_session=True,
    )
    assert starter.stdout is not None
    url = starter.stdout.readline().strip()
    assert os.getsid(postmaster(folder)) != starter.pid
    os.killpg(starter.pid, signal.SIGINT)
    starter.wait()
    time.sleep(0.3)
    assert answer(url) == "codelupe"


def test_after_a_kill_of_postgres(folder: Path) -> None:
    url = embedded.start(folder)
    answer(url, "create table kept (n int); insert into kept values (7); select 1")
    os.kill(postmaster(folder), signal.SIGKILL)
    url = embedded.start(folder)
    assert answer(url, "select n from kept") == 7


def test_a_pid_that_belongs_to_another_program_now(folder: Path) -> None:
    """After a reboot, the pid in postmaster.pid may belong to any program. Here it is a process of the same user."""
    sleeper = subprocess.Popen(["sleep", "60"], **server_user.server_identity())
    try:
        (folder / "pgdata" / "postmaster.pid").write_text(
            f"{sleeper.pid}\n{folder}/pgdata\n1\n5432\n/tmp\n\n1 1\nready\n"
        )
        assert embedded.running_url(folder) is None
        assert not embedded.stop(folder)
        assert sleeper.poll() is None  # nothing killed it
        assert answer(embedded.start(folder)) == "codelupe"
        assert sleeper.poll() is None
    finally:
        sleeper.kill()
        sleeper.wait()


def test_a_socket_folder_that_was_swept_away(folder: Path) -> None:
    embedded.start(folder)
    shutil.rmtree(folder / "socket")
    assert answer(embedded.start(folder)) == "codelupe"


@pytest.mark.parametrize("made", ["folder", "fresh"])
def test_two_starts_at_once(made: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(made)
    starters = [python(f"print(embedded.start(Path({str(folder)!r})))") for _ in range(2)]
    outputs = {starter.communicate()[0].strip() for starter in starters}
    assert len(outputs) == 1
    assert answer(outputs.pop()) == "codelupe"


def test_an_interrupted_initdb_leaves_no_database(fresh: Path) -> None:
    (fresh / "pgdata.new").mkdir(parents=True)
    (fresh / "pgdata.new" / "PG_VERSION").write_text("18\n")
    assert answer(embedded.start(fresh)) == "codelupe"


def test_a_failed_start_shows_the_servers_message(folder: Path) -> None:
    with (folder / "pgdata" / "postgresql.conf").open("a") as file:
        file.write("shared_buffers = nonsense\n")
    with pytest.raises(EmbeddedDatabaseError, match='invalid value for parameter "shared_buffers"'):
        embedded.start(folder)
    (folder / "pgdata" / "PG_VERSION").write_text("12\n")
    with pytest.raises(EmbeddedDatabaseError, match="made by Postgres 12"):
        embedded.start(folder)


def test_libpq_variables_are_ignored(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PGPORT": "7777", "PGDATA": "/nowhere", "PGUSER": "me", "LC_ALL": "xx_YY"}.items():
        monkeypatch.setenv(name, value)
    assert answer(embedded.start(folder)) == "codelupe"


def _as_nobody(folder: Path, answers: Queue[str]) -> None:
    entry = pwd.getpwnam("nobody")
    os.setgroups([])
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)
    url = embedded.start(folder)
    answers.put(f"{answer(url)} {embedded.running_url(folder) == url} {embedded.stop(folder)}")
    answers.put(embedded.start(folder))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_as_an_ordinary_user(fresh: Path) -> None:
    entry = pwd.getpwnam("nobody")
    fresh.parent.chmod(0o755)
    fresh.mkdir()
    os.chown(fresh, entry.pw_uid, entry.pw_gid)
    forked = get_context("fork")  # that user may be unable to read the interpreter
    answers: Queue[str] = forked.Queue()
    process = forked.Process(target=_as_nobody, args=(fresh, answers))
    process.start()
    assert answers.get(timeout=30) == "codelupe True True"
    url = answers.get(timeout=30)
    process.join()
    assert (fresh / "pgdata").stat().st_uid == entry.pw_uid
    assert stat.S_IMODE((fresh / "socket").stat().st_mode) == 0o700
    assert answer(url) == "codelupe"  # root may connect and stop it


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user runs Postgres itself")
def test_as_root_below_a_closed_folder(folder: Path) -> None:
    """Afterwards others may traverse the folder but not list it."""
    closed = folder / "closed"
    (closed / "data").mkdir(parents=True)
    (folder / "pgdata").rename(closed / "data" / "pgdata")
    closed.chmod(0o700)
    url = embedded.start(closed / "data")
    assert answer(url) == "codelupe"
    assert stat.S_IMODE(closed.stat().st_mode) == 0o701
    assert embedded.stop(closed / "data")
