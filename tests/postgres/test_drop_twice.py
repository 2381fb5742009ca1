"""`drop` into a real table: files are inserted once, large files work, and listeners are notified."""

from __future__ import annotations

import subprocess
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import psycopg2
import pytest
from modules import code

from db import files as files_of_db
from db.errors import DatabaseError
from db.files import NewFile, insert_files
from db.pool import Pool
from service.intake.drop import drop_paths
from service.intake.records import Given
from service.progress import reported_to


def checkout(root: Path, commits: int) -> Path:
    root.mkdir()
    git = ["git", "-C", str(root), "-c", "user.name=n", "-c", "user.email=e@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    for number in range(commits):
        (root / "a.py").write_text(code(number))
        (root / f"b{number}.py").write_text(code(100 + number))
        subprocess.run([*git, "add", "."], check=True)
        subprocess.run([*git, "commit", "-qm", f"commit {number}"], check=True)
    return root


def test_files_and_history_are_inserted_once(pool: Pool, tmp_path: Path, query: Any):
    root = checkout(tmp_path / "project", 3)
    for _ in range(2):
        drop_paths(pool, [str(root)], Given())
        drop_paths(pool, [str(root)], Given(phase="evolution"), history_commits=100)
    assert query("select phase, count(*) from code_files group by 1 order by 1 nulls first") == [
        (None, 4), ("evolution", 6),
    ]  # fmt: skip
    assert query("select count(distinct commit_sha) from code_files where phase is not null") == [(3,)]
    again = drop_paths(pool, [str(root)], Given(), history_commits=100)
    assert (again.inserted, again.skipped) == (0, {"already there": 6})


def test_many_drops_at_once_insert_each_file_once(
    pool: Pool, database_url: str, monkeypatch: pytest.MonkeyPatch, query: Any
):
    look = files_of_db._known

    def look_slowly(*arguments: Any) -> set[int]:
        found = look(*arguments)
        time.sleep(0.02)  # another drop would look now if it did not have to wait
        return found

    monkeypatch.setattr("db.files.INSERT_ROWS", 7)
    monkeypatch.setattr("db.files._known", look_slowly)
    files = [NewFile(repository="r", path=f"{n}.c", language="c", content="x", quality_score=1.0) for n in range(100)]
    totals: list[int] = []

    def add() -> None:
        own = Pool(database_url)
        totals.append(insert_files(own, files))
        own.close()

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(totals) == 100 and query("select count(*), count(distinct path) from code_files") == [(100, 100)]


def test_what_makes_two_files_different(pool: Pool, query: Any):
    def add(**changes: Any) -> int:
        facts: dict[str, Any] = {"repository": "r", "path": "a", "language": "c", "content": "x", "quality_score": 1.0}
        return insert_files(pool, [NewFile(**facts | changes)])

    changed: list[dict[str, Any]] = [
        {}, {"content": "y"}, {"path": "b"}, {"repository": "s"}, {"path": "é" * 5000},
        {"metadata": {"diff": "d"}}, {"metadata": {"diff": "d"}, "commit_sha": "1"},
        {"metadata": {"diff": "d"}, "commit_sha": "2"},
    ]  # fmt: skip
    assert [add(**changes) for changes in changed] == [1] * len(changed)
    assert [add(**changes) for changes in changed] == [0] * len(changed)
    assert add(commit_sha="3", license="MIT", quality_score=2.0) == 0  # the same file at another commit
    assert add(metadata={"diff": "d"}, commit_sha="2", content="z") == 0  # a change is identified by its commit
    assert [add(path=None), add(path=None)] == [1, 1]  # nothing identifies the file
    twice = [NewFile(repository="r", path=p, language="c", content="x", quality_score=1.0) for p in ("c", "c", "d")]
    assert insert_files(pool, twice) == 2


def test_text_of_every_kind_goes_through_copy(pool: Pool, query: Any):
    odd = "tab\t back\\slash \\N \\. \r\n line \x0b \x85 \u2028 🙂 '\"{} %s\n\\."
    file = NewFile(repository="r\\t", path="a\nb", language=None, content=odd, quality_score=None,
                   license="\\N", metadata={"é\n": [odd, None]})  # fmt: skip
    insert_files(pool, [file])
    assert query("select repository, path, language, content, quality_score, license, metadata from code_files") == [
        ("r\\t", "a\nb", None, odd, None, "\\N", {"é\n": [odd, None]})
    ]


def test_large_files_do_not_wait_for_a_full_batch(pool: Pool, query: Any, monkeypatch: pytest.MonkeyPatch):
    """At most one batch is prepared while another is written."""
    monkeypatch.setattr("db.files.INSERT_CHARS", 1000)
    lag = []

    def files() -> Any:
        for number in range(20):
            lag.append(number - query("select count(*) from code_files")[0][0])
            yield NewFile(repository="r", path=str(number), language="c", content="x" * 600, quality_score=1.0)

    assert insert_files(pool, files()) == 20
    assert max(lag) <= 4 and query("select count(*) from code_files") == [(20,)]


def test_a_batch_that_cannot_be_written_is_an_error(pool: Pool, query: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("db.files.INSERT_ROWS", 2)
    query("alter table code_files add check (path <> '3')")
    files = [NewFile(repository="r", path=str(n), language="c", content="x", quality_score=1.0) for n in range(9)]
    with pytest.raises(DatabaseError, match="violates check constraint"):
        insert_files(pool, files)
    assert query("select path from code_files order by id") == [("0",), ("1",)]


def test_listeners_are_notified_at_the_commit(pool: Pool, database_url: str):
    connection = psycopg2.connect(database_url)
    connection.autocommit = True
    connection.cursor().execute("listen codelupe_files")
    insert_files(pool, [NewFile(repository="r", path="a", language="c", content="x", quality_score=1.0)])
    for _ in range(100):  # the notification may take a while
        connection.poll()
        if connection.notifies:
            break
        time.sleep(0.05)
    assert [notice.channel for notice in connection.notifies] == ["codelupe_files"]
    connection.close()


def test_a_listener_is_notified_once_and_holds_nothing_afterwards(pool: Pool):
    with pool.listening("codelupe_files") as heard:
        started = time.monotonic()
        assert heard(0.2) is False and time.monotonic() - started >= 0.2
        timer = threading.Timer(0.3, insert_files, [pool, [NewFile(
            repository="r", path="a", language="c", content="x", quality_score=1.0)]])  # fmt: skip
        timer.start()
        assert heard(10) is True and time.monotonic() - started < 5
        timer.join()
        assert heard(0) is False
    assert pool.stats().in_use == 0


def test_a_drop_reports_what_was_inserted_and_its_end(pool: Pool, tmp_path: Path):
    class Seen:
        draws = False
        said: ClassVar[list[str]] = []

        def show(self, name: str, said: str, done: float, total: float | None, *, is_logged: bool) -> None:
            self.said.append(f"{name}: {said}")

        def end(self, names: tuple[str, ...]) -> None:
            self.said.extend(f"{name} ended" for name in names)

    for number in range(3):
        (tmp_path / f"{number}.py").write_text(code(number))
    (tmp_path / "image.png").write_bytes(b"\x89PNG\0")
    with reported_to(Seen()):
        drop_paths(pool, [str(tmp_path)], Given())
    assert Seen.said[-2:] == ["reading files: 3 rows inserted, 1 skipped", "reading files ended"]
