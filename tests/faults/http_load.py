"""Row 16: HTTP load during a real run: a steady rate, a burst, and clients that never finish their request."""

from __future__ import annotations

import json
import random
import socket
import statistics
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from oracle import Broken
from rows import Done, Row, Trials
from scene import code

from trainer.records import read_lines

sys.path.append(str(Path(__file__).resolve().parents[1] / "end_to_end"))

from driver import Codelupe, wait_for

PATHS = ("/health", "/livez", "/readyz", "/metrics", "/metrics?format=prometheus", "/", "/api/runs", "/api/adapters")
RATE = 20.0
PERIOD_SECONDS = 15.0
"""Periods with and without requests alternate. The steps of both kinds are compared."""
SLOW_CLIENTS, FULL_REQUESTS, MIN_STEPS = 600, 12_000, 20
MAX_P99_SECONDS, MAX_STEP_RATIO = 0.1, 1.05


@contextmanager
def training(folder: Path, files: int) -> Iterator[Codelupe]:
    """Run a service that is training the tiny model for a long time."""
    rows = folder / "rows.jsonl"
    with rows.open("w") as file:
        for n in range(files):
            file.write(json.dumps({"path": f"{n}.py", "content": code(n, lines=24), "quality_score": 90}) + "\n")
    service = Codelupe(folder / "home", MAX_DATASET_SIZE="100000", MIN_NEW_FILES=str(files), SAMPLE_PREDICTIONS="0")
    service.up("--no-demo")
    try:
        assert service.json("drop", str(rows))["inserted"] == files
        wait_for(lambda: (service.metric("step") or 0) >= 2, "the first steps", 300)
        yield service
    finally:
        service.stop()


def ask(address: str, path: str) -> float:
    """Return the seconds until the whole answer arrived.

    Raises:
        Broken: the answer is empty or has another status than 200.
    """
    began = time.monotonic()
    with urllib.request.urlopen(f"http://{address}{path}", timeout=30) as answer:
        body = answer.read()
        if answer.status != 200 or not body:
            raise Broken(f"{path}: {answer.status}, {len(body)} bytes")
    return time.monotonic() - began


def trickle(service: Codelupe, seconds: float) -> list[float]:
    """Send RATE requests a second, each from its own thread. Return how long each took."""
    with ThreadPoolExecutor(16) as threads:
        began, asked = time.monotonic(), []
        while (passed := time.monotonic() - began) < seconds:
            asked.append(threads.submit(ask, service.address, PATHS[len(asked) % len(PATHS)]))
            time.sleep(max(0.0, len(asked) / RATE - passed))
        return [each.result() for each in asked]


def steps(service: Codelupe) -> list[tuple[float, float]]:
    """Return (time, tokens per second) for every step of every run."""
    found = []
    for events in sorted((service.home / "runs").glob("*/events.jsonl")):
        found += [(e["time"], e["tokens_per_second"]) for e in read_lines(events) if e["event"] == "step"]
    return found


def steady(service: Codelupe, requests: int) -> Done:
    """First trial: alternate between 20 requests a second and none."""
    taken: list[float] = []
    loaded: list[tuple[float, float]] = []
    while len(taken) < requests:
        began = time.time()
        taken += trickle(service, min(PERIOD_SECONDS, (requests - len(taken)) / RATE))
        loaded.append((began, time.time()))
        time.sleep(min(PERIOD_SECONDS, loaded[-1][1] - began))
    p99 = statistics.quantiles(taken, n=100)[98]
    rates: dict[bool, list[float]] = {True: [], False: []}
    for when, rate in steps(service):
        if when >= loaded[0][0]:
            rates[any(began <= when <= ended for began, ended in loaded)].append(rate)
    if requests >= FULL_REQUESTS and min(map(len, rates.values())) < MIN_STEPS:
        raise Broken(f"too few steps to compare: {len(rates[True])} with requests, {len(rates[False])} without")
    ratio = statistics.median(rates[False]) / statistics.median(rates[True]) if all(rates.values()) else 1.0
    note = (
        f"p99 {1000 * p99:.0f} ms, most {1000 * max(taken):.0f} ms; a step takes {100 * (ratio - 1):+.1f} % "
        f"({len(rates[True])} and {len(rates[False])} steps)"
    )
    if requests >= FULL_REQUESTS and (p99 > MAX_P99_SECONDS or ratio > MAX_STEP_RATIO):
        raise Broken(note)  # only the full run checks speed
    return Done(count=len(taken), note=note)


def burst(address: str, requests: int) -> Done:
    """Second trial: send requests as fast as possible."""
    began = time.monotonic()
    with ThreadPoolExecutor(32) as threads:
        taken = list(threads.map(lambda n: ask(address, PATHS[n % len(PATHS)]), range(requests)))
    rate = requests / (time.monotonic() - began)
    return Done(count=requests, note=f"{rate:.0f} a second, most {1000 * max(taken):.0f} ms")


@contextmanager
def half_requests(address: str, clients: int, chance: random.Random) -> Iterator[None]:
    """Open connections that send half a request and then nothing."""
    host, port = address.split(":")
    with ExitStack() as held:
        for _ in range(clients):
            client = held.enter_context(socket.create_connection((host, int(port)), timeout=10))
            client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX-Slow: "[: chance.randrange(5, 40)])
        yield


def slow_clients(address: str, clients: int) -> Done:
    """Third trial: /health answers despite slow clients."""
    taken, chance = [], random.Random(1)
    with ExitStack() as held:
        for _ in range(0, clients, 50):
            held.enter_context(half_requests(address, 50, chance))
            taken.append(ask(address, "/health"))
        for _ in range(20):
            taken.append(ask(address, "/health"))
            time.sleep(0.1)
    return Done(count=clients, note=f"/health within {1000 * max(taken):.0f} ms")


@contextmanager
def http(folder: Path, sample: bool) -> Iterator[Trials]:
    with training(folder, 120 if sample else 20_000) as service:
        sizes = (60, 200, 50) if sample else (FULL_REQUESTS, 20_000, SLOW_CLIENTS)

        def trial(number: int) -> Done:
            pid = service.trainer_pid()
            if number == 0:
                done = steady(service, sizes[0])
            else:
                done = (burst, slow_clients)[number - 1](service.address, sizes[number])
            if not sample and (pid is None or service.trainer_pid() != pid):
                raise Broken(f"the trainer did not run the whole time; {done.note}")
            return done

        yield Trials(number=3, run=trial)


ROWS = {
    16: Row(fault="HTTP while training: 20 requests a second for ten minutes, a burst of 20,000, 600 slow clients",
            unit="requests", passes="0 errors; first trial: p99 < 100 ms, steps at most 5 % slower", prepare=http),
}  # fmt: skip
