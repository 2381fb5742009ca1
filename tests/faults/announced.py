"""Row 23: commits fail where something is announced, and files arrive during a pause. What is said is what happened."""

from __future__ import annotations

import os
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg2
from oracle import Broken
from rows import Done, Row, Trials
from scene import STUB, Options, Scene, code, in_process, recipe_of, scene, server

WAIT_SECONDS = 30.0
LONG_PAUSE_SECONDS = 600.0
FAIL = (
    "create function fail() returns trigger language plpgsql as $$ begin raise exception 'the commit fails'; end $$; "
    "create constraint trigger fails after {event} deferrable initially deferred for each row {when} "
    "execute function fail()"
)
"""Makes the COMMIT of a transaction fail."""


def execute(one: Scene, statement: str) -> None:
    connection = psycopg2.connect(one.url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(statement)
    connection.close()


def log(one: Scene) -> str:
    return one.home.log_file.read_text() if one.home.log_file.exists() else ""


def await_log(one: Scene, text: str, count: int = 1) -> None:
    """Wait until the log contains a text this often."""
    deadline = time.monotonic() + WAIT_SECONDS
    while log(one).count(text) < count:
        if time.monotonic() > deadline:
            raise Broken(f"the log does not contain {text!r} {count} times: {one.log_tail()}")
        time.sleep(0.02)


def tells_a_verdict(one: Scene) -> bool:
    """Return whether /metrics has the rules of a verdict."""
    address = (one.folder / "http").read_text()
    with urllib.request.urlopen(f"http://{address}/metrics?format=prometheus", timeout=10) as answer:
        return b"\ncodelupe_gate_rule{" in answer.read()


# --- commits that fail ----------------------------------------------------------------------------------------


def failing_commit(one: Scene, *, event: str, when: str = "", after: str, said: tuple[str, ...]) -> Done:
    """Let a commit of the service fail. Nothing may be said before it succeeds.

    Args:
        after: what the log says last before the transaction
        said: what the log may say only after the commit
    """
    execute(one, FAIL.format(event=event, when=when))
    one.start(http=one.folder / "http")
    deadline = time.monotonic() + WAIT_SECONDS
    while " Paused " not in log(one):
        if time.monotonic() > deadline:
            raise Broken(f"no commit failed: {one.log_tail()}")
        one.produce(4)
        time.sleep(0.3)
    since = log(one).rsplit(after, 1)[-1]
    if early := [text for text in said if text in since]:
        raise Broken(f"announced before the commit: {early}: {one.log_tail()}")
    if "the commit fails" not in log(one):
        raise Broken(f"paused for another reason: {one.log_tail()}")
    if not when and tells_a_verdict(one):  # no run has been settled yet
        raise Broken("the board tells a verdict that is not settled")
    execute(one, "drop trigger fails on " + event.split(" on ")[1])
    one.settle()
    for text in said:
        await_log(one, text)
    return Done()


def claim_fails(one: Scene) -> Done:
    return failing_commit(one, event="insert on codelupe.run_rows", after=" Standby ", said=(" Claimed ",))


def publication_fails(one: Scene) -> Done:
    said = (" Verdict ", " Saving adapter ", " Pointer ")
    return failing_commit(one, event="insert on codelupe.adapters", after=" Training finished ", said=said)


def refusal_fails(one: Scene) -> Done:
    """The stub's seventh candidate is worse."""
    when = "when (new.state = 'refused')"
    return failing_commit(
        one, event="update on codelupe.runs", when=when, after=" Training finished ", said=(" Verdict ",)
    )


# --- commands -------------------------------------------------------------------------------------------------


def codelupe(options: Options, arguments: list[str], output: Path) -> None:
    """Run a command in this process, and write its output and exit code to a file."""
    from db import files
    from service import up
    from service.cli.main import main
    from service.cycle import launch

    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.environ |= {"CODELUPE_HOME": str(options.home), "DATABASE_URL": options.url, "MIN_NEW_FILES": "1",
                   "METRICS_PORT": "0", "CHECK_INTERVAL": "0.1"}  # fmt: skip
    files.INSERT_ROWS = 5
    launch.TRAINER = STUB
    up.prepared_recipe = lambda settings, *_: recipe_of(settings, options)  # type: ignore[assignment]  # needs torch
    up.bind_stream = lambda *_: None  # type: ignore[assignment]  # the scene has bound the stream
    code = 0
    try:
        import sys

        sys.argv = ["codelupe", *arguments]
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    os.write(descriptor, f"\nexit {code}\n".encode())
    os._exit(code)


def said_by(one: Scene, *arguments: str) -> tuple[int, str]:
    """Run a command. Return its exit code and output."""
    output = one.folder / "said"
    process = in_process(codelupe, one.options, list(arguments), output)
    process.join(60)
    if process.exitcode is None:
        process.kill()
        raise Broken(f"{arguments} does not end: {output.read_text()}")
    return process.exitcode, output.read_text()


def expect(found: tuple[int, str], code: int, *texts: str, never: str) -> None:
    if found[0] != code or never in found[1] or not all(text in found[1] for text in texts):
        raise Broken(f"expected exit {code} and {texts}, not {never!r}: {found}")


def up_once_fails(one: Scene) -> Done:
    """The publication fails, so there is no verdict. The next start settles the run."""
    one.produce(8)
    execute(one, FAIL.format(event="insert on codelupe.adapters", when=""))
    expect(said_by(one, "up", "--once"), 1, "no verdict: while judging: the commit fails", never="verdict: published")
    execute(one, "drop trigger fails on codelupe.adapters")
    expect(said_by(one, "up", "--once"), 0, "verdict: published", never="the commit fails")
    one.check()
    return Done()


def drop_fails(one: Scene) -> Done:
    """The second of three batches fails. Then a drop succeeds without a service."""
    folder = one.folder / "dropped"
    folder.mkdir()
    for n in range(12):
        (folder / f"m{n:02}.py").write_text(code(n))
    execute(one, FAIL.format(event="insert on code_files", when="when (new.path = 'm07.py')"))
    expect(said_by(one, "drop", str(folder)), 3, "At least 5 rows were inserted", never="rows pending")
    execute(one, "drop trigger fails on code_files")
    expect(said_by(one, "drop", str(folder)), 0, "7 rows inserted", "No service is running", never="next poll")
    return Done()


def rollback_and_revoke_fail(one: Scene) -> Done:
    one.start()
    for _ in range(2):
        [file_id, *_] = one.produce(8)
        one.settle()
    one.stop()
    before = one.pointer.readlink()
    execute(one, FAIL.format(event="update on codelupe.adapters", when=""))
    expect(said_by(one, "rollback", "1"), 3, "the commit fails", never="→")
    execute(one, "drop trigger fails on codelupe.adapters; drop function fail()")
    execute(one, FAIL.format(event="insert on codelupe.revocations", when=""))
    expect(said_by(one, "revoke", str(file_id)), 3, "the commit fails", never="revoked:")
    if one.pointer.readlink() != before:
        raise Broken("the pointer moved, although the commit failed")
    execute(one, "drop trigger fails on codelupe.revocations")
    one.check()
    return Done()


# --- pauses ---------------------------------------------------------------------------------------------------


def paused_for_files(one: Scene, *, check_interval: str, notify: bool) -> Done:
    """One file leaves nothing to hold out. More files end the pause, which would last ten minutes."""
    one.produce(1)
    one.start(first_pause_seconds=LONG_PAUSE_SECONDS, settings=(("CHECK_INTERVAL", check_interval),))
    await_log(one, " Paused ")
    began = time.monotonic()
    one.produce(9)
    if notify:
        execute(one, "notify codelupe_files")
    one.settle(WAIT_SECONDS)
    return Done(note=f"{time.monotonic() - began:.1f} s")


def files_are_announced(one: Scene) -> Done:
    return paused_for_files(one, check_interval="600", notify=True)


def files_arrive_silently(one: Scene) -> Done:
    return paused_for_files(one, check_interval="0.2", notify=False)


KINDS: tuple[Callable[[Scene], Done], ...] = (
    claim_fails, publication_fails, refusal_fails, up_once_fails, drop_fails, rollback_and_revoke_fail,
    files_are_announced, files_arrive_silently,
)  # fmt: skip


@contextmanager
def announcements(folder: Path, sample: bool) -> Iterator[Trials]:
    number = len(KINDS) * (1 if sample else 12)
    with server(folder / "postgres") as url:

        def trial(n: int) -> Done:
            kind = KINDS[n % len(KINDS)]
            with scene(folder / f"trial{n}", url, f"announced_{n}") as one:
                done = kind(one)
            return Done(note=f"{kind.__name__} {done.note}".strip())

        yield Trials(number=number, run=trial)


ROWS = {
    23: Row(fault="a commit fails where a claim, a verdict or the result of a command is announced; files arrive "
            "during a pause that asks for them", unit="times",
            passes="nothing is said before it is committed; the files end the pause", prepare=announcements),
}  # fmt: skip
