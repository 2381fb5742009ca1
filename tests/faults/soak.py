"""Row 18: one service meets all faults in turn for an hour. At the end its process must not have grown.

The row uses only faults that the process survives, because it looks for leaks in the process. A thread requests
/health the whole time.
"""

from __future__ import annotations

import http.client
import os
import random
import signal
import statistics
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import psycopg2
from damage import damage
from database_faults import MOMENTS, await_status, degraded, is_idle, restart, terminate
from fitting_faults import ledger
from full import EVERYWHERE, DiskFault
from http_load import burst, half_requests
from kills import GRACE_SECONDS, await_trainers, send_signal
from malformed import text
from oracle import Broken, check_pointer, count
from proxy import Proxy
from rows import Done, Row, Trials
from scene import INSERT, Scene, Service, code, new_database, server

from trainer.run_dir import read_json

LEASE_SECONDS = 4.0
SETTLE_SECONDS = 60.0
ANSWER_SECONDS = 5.0
"""The limit for an answer of /health, except while the process is stopped."""
MAX_GROWTH = 1.05
"""The limit for the growth of resident memory, from the second fifth of the hour to the last."""
HELD_OUT_FRACTION = 0.01
"""Each claim reads all held-out files, here without a limit. With a larger fraction these would grow the process."""
SETTINGS = (("DB_POOL_MAX_CONN", "3"), ("LOG_FORMAT", "json"))


@dataclass(frozen=True, kw_only=True)
class Size:
    """The size of the service's process while it is idle."""

    memory_bytes: int
    descriptors: int
    threads: int


class HealthPoller:
    """Requests /health five times a second, in its own thread."""

    def __init__(self, address: str) -> None:
        self._url, self._ended = f"http://{address}/health", threading.Event()
        self.expected = threading.Event()
        """Whether an answer is expected. A stopped process does not answer."""
        self.expected.set()
        self.answers, self._seen, self.longest_seconds = 0, 0, 0.0
        self.wrong: list[str] = []
        self._thread = threading.Thread(target=self._run, name="poller", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(0.2):
            if self.expected.is_set():
                self._ask()

    def _ask(self) -> None:
        began = time.monotonic()
        try:
            with urllib.request.urlopen(self._url, timeout=ANSWER_SECONDS) as answer:
                answer.read()
        except urllib.error.HTTPError as error:
            if error.code != 503:
                self.wrong.append(f"{error.code}")
        except (OSError, http.client.HTTPException) as error:  # a partial answer counts as none
            if self.expected.is_set():
                self.wrong.append(f"{type(error).__name__}: {error}")
            return
        if self.expected.is_set():  # the process was not stopped meanwhile
            self.answers += 1
            self.longest_seconds = max(self.longest_seconds, time.monotonic() - began)

    def check(self) -> None:
        """Check the requests since the last check.

        Raises:
            Broken: a request had no answer, or there was no request.
        """
        if self.wrong:
            raise Broken(f"/health did not answer {len(self.wrong)} times: {self.wrong[:3]}")
        if self.answers == self._seen:
            raise Broken("/health was not requested")
        self._seen = self.answers

    def end(self) -> None:
        self._ended.set()
        self._thread.join()


@dataclass(kw_only=True)
class Soak:
    """The service and its surroundings."""

    one: Scene
    service: Service
    address: str
    proxy: Proxy
    poller: HealthPoller
    postgres: Path
    full: Path
    """The disk is full while this file exists."""
    odd: set[int] = field(default_factory=set)
    """The ids of rows that may be refused."""

    @property
    def pid(self) -> int:
        return self.service.process.pid or 0

    def await_settled(self) -> None:
        """Wait until the ledger has settled every row and the service is idle.

        The oracle reads all runs, so it is used only once per round.
        """
        deadline = time.monotonic() + SETTLE_SECONDS
        while unsettled := self._unsettled():
            if time.monotonic() > deadline or self.service.process.exitcode is not None:
                raise Broken(f"not settled: {unsettled[:10]}; {self.one.log_tail()}")
            time.sleep(0.05)
        await_status(self.one, is_waiting, 20.0, "the service does not become idle")

    def _unsettled(self) -> list[int]:
        found = ledger(self.one)
        return [n for n in self.one.log.ids() if found.get(n, ("", None))[0] in ("", "claimed", "returned")]

    def check(self) -> None:
        """Check the oracle, the pointer, the audit and the answers of /health."""
        refused = [n for n, (word, _) in ledger(self.one).items() if word == "rejected" and n in self.odd]
        found = count(self.one.log.ids(), self.one.pointer, self.one.home.runs, refused=refused)
        if not found.settled:
            raise Broken(f"{found}; {self.one.log_tail()}")
        self.one.check()
        self.poller.check()

    def size(self) -> Size:
        process = psutil.Process(self.pid)
        return Size(memory_bytes=process.memory_info().rss, descriptors=process.num_fds(),
                    threads=process.num_threads())  # fmt: skip


def is_waiting(seen: dict[str, Any]) -> bool:
    """Return whether the service is idle and the pointer has followed the last verdict."""
    return is_idle(seen) and bool(seen["reason"].startswith("waiting"))


# --- faults ---------------------------------------------------------------------------------------------------


def nothing(soak: Soak, chance: random.Random) -> None:
    """Run an ordinary cycle."""


def requests(soak: Soak, chance: random.Random) -> None:
    """Send a burst of requests, and some that never end."""
    with half_requests(soak.address, 60, chance):
        burst(soak.address, 200)


def ended_connections(soak: Soak, chance: random.Random) -> None:
    """Terminate server processes while they are idle or in a transaction."""
    with closing(psycopg2.connect(soak.one.url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            terminate(cursor, chance.choice(list(MOMENTS)[:2]), lambda: soak.one.produce(2))


def restarted_database(soak: Soak, chance: random.Random) -> None:
    restart(soak.postgres, chance.choice((signal.SIGINT, signal.SIGQUIT)), chance.choice((0.0, 0.0, 1.0)))


def cut_network(soak: Soak, chance: random.Random) -> None:
    soak.proxy.reset(server_too=chance.random() < 0.5)


def silent_network(soak: Soak, chance: random.Random) -> None:
    soak.proxy.black_hole(new_ones=True)
    await_status(soak.one, degraded, 20.0, "health does not say that the database is silent")


def slow_network(soak: Soak, chance: random.Random) -> None:
    soak.proxy.delay(0.3)
    time.sleep(2.0)


def sliced_network(soak: Soak, chance: random.Random) -> None:
    soak.proxy.slices()
    soak.await_settled()


def lost_commit(soak: Soak, chance: random.Random) -> None:
    """Lose the answer to a COMMIT."""
    soak.proxy.lose_answer(chance.choice(("reset", "hole")), number=chance.randrange(1, 6))
    for _ in range(10):
        soak.one.produce(4)
        if soak.proxy.lost.wait(2.0):
            return
    raise RuntimeError("there was no COMMIT")


def killed_trainer(soak: Soak, chance: random.Random) -> None:
    while not send_signal(await_trainers(soak.one), signal.SIGKILL):
        continue  # the trainer has just ended


def full_disk(soak: Soak, chance: random.Random) -> None:
    """Let every write of the service fail for a while."""
    hit = soak.full.with_name("full.hit")
    hit.unlink(missing_ok=True)
    soak.full.touch()
    try:
        soak.one.produce(2)
        deadline = time.monotonic() + 20
        while not hit.exists():
            if time.monotonic() > deadline:
                raise RuntimeError("the service wrote nothing")
            time.sleep(0.02)
        time.sleep(chance.uniform(0.2, 1.5))
        check_pointer(soak.one.pointer)
    finally:
        soak.full.unlink()


def stopped_service(soak: Soak, chance: random.Random) -> None:
    """Stop the service until its lease has expired."""
    soak.poller.expected.clear()
    os.kill(soak.pid, signal.SIGSTOP)
    time.sleep(1.5 * LEASE_SECONDS)
    os.kill(soak.pid, signal.SIGCONT)
    time.sleep(0.5)
    soak.poller.expected.set()


def damaged_adapter(soak: Soak, chance: random.Random) -> None:
    """Damage the published adapter. No run may start from it until it is restored."""
    soak.await_settled()
    while not soak.one.pointer.is_symlink():  # the first candidates may have been refused
        soak.one.produce(8)
        soak.await_settled()
    folder = soak.one.pointer.resolve()
    kept = {path: path.read_bytes() for path in folder.iterdir()}
    damage(folder, chance)
    soak.one.produce(4)
    await_status(soak.one, lambda seen: "cannot be trained on" in seen["reason"], 30.0, "the service did not notice")
    for path, data in kept.items():
        path.write_bytes(data)


def odd_rows(soak: Soak, chance: random.Random) -> None:
    """Insert difficult texts, and rows that are not eligible."""
    odd = []
    with closing(psycopg2.connect(soak.one.url)) as connection, connection, connection.cursor() as cursor:
        for n in range(6):
            content = text(chance)[:4000] + code(chance.randrange(10**9))
            cursor.execute(INSERT, (("r", f"odd/{n}.py", "python", content, 90.0),))
            odd += cursor.fetchone() or ()
            cursor.execute(INSERT, (("r", f"poor/{n}.py", "python", code(n), chance.choice((10.0, None))),))
    soak.odd.update(odd)
    soak.one.log.add(odd)


def odd_producers(soak: Soak, chance: random.Random) -> None:
    """Commit one transaction late, roll one back, and raise a score later."""
    late, undone = psycopg2.connect(soak.one.url), psycopg2.connect(soak.one.url)
    with closing(late), closing(undone), late.cursor() as first, undone.cursor() as second:
        number = soak.one.made + 10**6 * chance.randrange(1, 1000)
        first.execute(INSERT, (("r", "late.py", "python", code(number), 90.0),))
        second.execute(INSERT, (("r", "undone.py", "python", code(number + 1), 90.0),))
        (late_id,) = first.fetchone() or (0,)
        soak.one.produce(4)
        soak.await_settled()
        undone.rollback()
        late.commit()
        soak.one.log.add([late_id])
        first.execute(INSERT, (("r", "risen.py", "python", code(number + 2), 10.0),))
        (risen,) = first.fetchone() or (0,)
        late.commit()
        first.execute("update code_files set quality_score = 90 where id = %s", (risen,))
        late.commit()
        soak.one.log.add([risen])


FAULTS: tuple[Callable[[Soak, random.Random], None], ...] = (
    nothing, requests, ended_connections, restarted_database, cut_network, silent_network, slow_network,
    sliced_network, lost_commit, killed_trainer, full_disk, stopped_service, damaged_adapter, odd_rows, odd_producers,
)  # fmt: skip
SAMPLED = (requests, cut_network, killed_trainer, full_disk, odd_producers)


# --- the hour -------------------------------------------------------------------------------------------------


@contextmanager
def soaking(folder: Path) -> Iterator[Soak]:
    with server(folder / "postgres", durable=True) as url:
        one, proxy = Scene(folder / "scene", new_database(url, "soak")), Proxy(url)
        full, address = one.folder / "full", one.folder / "address"
        service = one.start(
            url=proxy.url(one.url), short_timeouts=True, status_file=one.folder / "status", settings=SETTINGS,
            lease_seconds=LEASE_SECONDS, http=address, held_out_fraction=HELD_OUT_FRACTION,
            disk=DiskFault(point=EVERYWHERE, time=1, error="ENOSPC", flag=full),
        )  # fmt: skip
        await_status(one, lambda seen: address.exists(), 30.0, "the service does not start")
        poller = HealthPoller(address.read_text())
        try:
            yield Soak(one=one, service=service, address=address.read_text(), proxy=proxy, poller=poller,
                       postgres=folder / "postgres", full=full)  # fmt: skip
        finally:
            poller.end()
            one.stop()
            proxy.close()


def one_fault(soak: Soak, fault: Callable[[Soak, random.Random], None], chance: random.Random) -> Size:
    """Inject a fault during a cycle. Every row must be settled after it."""
    soak.one.produce(chance.randrange(2, 16))
    time.sleep(chance.uniform(0, 0.5))
    try:
        fault(soak, chance)
    except Broken as error:
        raise Broken(f"{fault.__name__}: {error}") from error
    finally:
        soak.proxy.heal()
    soak.one.produce(2)
    try:
        soak.await_settled()
    except Broken as error:
        raise Broken(f"after {fault.__name__}: {error}") from error
    return soak.size()


def soak_for(soak: Soak, seconds: float, faults: tuple[Callable[[Soak, random.Random], None], ...]) -> Done:
    """Run rounds of all faults for this time."""
    sizes, began, chance = [], time.monotonic(), random.Random(18)
    while not sizes or time.monotonic() < began + seconds:
        sizes += [one_fault(soak, fault, chance) for fault in chance.sample(faults, len(faults))]
        soak.check()
        print(f"row 18, after {len(sizes)} faults: {sizes[-1]}", flush=True)
    soak.service.terminate(GRACE_SECONDS)
    seen = read_json(soak.one.folder / "status")
    if seen["in_use"] or seen["taken"]:
        raise Broken(f"the service ended with connections in use: {seen}")
    note = f"{time.monotonic() - began:.0f} s, {len(soak.one.log.ids()):,} rows, {soak.poller.answers:,} answers of " \
        f"/health within {soak.poller.longest_seconds:.2f} s; {growth(sizes)}"  # fmt: skip
    return Done(count=len(sizes), note=note)


def growth(sizes: list[Size]) -> str:
    """Compare the second fifth of the sizes with the last. The first fifth includes first-time costs.

    Raises:
        Broken: the process has grown.
    """
    fifth = len(sizes) // 5
    if fifth < 3:
        return "too short for growth"
    early, late = sizes[fifth : 2 * fifth], sizes[-fifth:]

    def medians(part: list[Size]) -> tuple[float, float, float]:
        return tuple(statistics.median(getattr(size, name) for size in part)
                     for name in ("memory_bytes", "descriptors", "threads"))  # type: ignore[return-value]  # fmt: skip

    (memory, descriptors, threads), (memory_then, descriptors_then, threads_then) = medians(late), medians(early)
    change = f"{memory_then / 2**20:.1f} to {memory / 2**20:.1f} MiB, {descriptors_then:g} to {descriptors:g} " \
        f"descriptors, {threads_then:g} to {threads:g} threads"  # fmt: skip
    if memory > MAX_GROWTH * memory_then or descriptors > descriptors_then + 1 or threads > threads_then:
        raise Broken(f"the process grew: {change}")
    return change


@contextmanager
def soak_row(folder: Path, sample: bool) -> Iterator[Trials]:
    def trial(number: int) -> Done:
        with soaking(folder / str(number)) as soak:
            hours = 0.0 if sample else float(os.environ.get("FAULTS_HOURS", "1"))
            return soak_for(soak, 3600 * hours, SAMPLED if sample else FAULTS)

    yield Trials(number=1, run=trial)


ROWS = {
    18: Row(fault="all faults that a service survives, in turn, for an hour (`--hours`)", unit="faults",
            passes="rows settled; /health answers; memory, descriptors and threads flat", prepare=soak_row),
}  # fmt: skip
