"""`make bench-page` measures the page: how soon it is painted, and what fifty open pages cost a training.

Paint: a stream with 10,000 runs, whose newest run has 200,000 steps (a million numbers), in a headless Chromium with
an empty cache. Load: a service trains the tiny model while fifty pages ask as the page's script does; without and with
pages in turn, so that a slow minute of the machine affects both. Chromium itself would take more of two cores than the
server does, so the pages of the second part are their requests alone: state and curves, since the log is out of sight.

It writes benchmarks/results/page-<machine>.md.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "browser")]

import yaml

from db import embedded, migrate
from db.pool import Pool
from service.web.board import Progress

RUNS, STEPS = 10_000, 200_000
PAGES, WINDOW_SECONDS, SETTLE_SECONDS = 50, 30.0, 12.0
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
MARKS = """() => Object.fromEntries(performance.getEntriesByType('paint').map((one) => [one.name, one.startTime]))"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loads", type=int, default=9, help="how often the page is loaded")
    parser.add_argument("--windows", type=int, default=4, help="pairs of windows without and with pages")
    parser.add_argument("--parts", default="paint,load")
    chosen = parser.parse_args()
    lines = [f"# The page, on {processor()}", "", "`make bench-page`. " + load_now(), ""]
    if "paint" in chosen.parts.split(","):
        lines += paint(chosen.loads)
    if "load" in chosen.parts.split(","):
        lines += load(chosen.windows)
    text = "\n".join(lines) + "\n"
    print(text)
    target = ROOT / "benchmarks" / "results" / f"page-{re.sub(r'[^a-z0-9]+', '-', processor().lower()).strip('-')}.md"
    target.write_text(text)


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{os.cpu_count()} cores of {line.split(':', 1)[1].strip()}"
    return f"{os.cpu_count()} cores, {platform.machine()}"


def load_now() -> str:
    return f"Load before the start: {os.getloadavg()[0]:.1f}."


# --- paint ------------------------------------------------------------------------------------------------------


def paint(loads: int) -> list[str]:
    """Load the page several times and return what was measured as Markdown."""
    if CHROMIUM is None:
        return ["Paint: not measured, because there is no Chromium here.", ""]
    from playwright.sync_api import sync_playwright

    found: dict[str, list[float]] = {}
    with many_runs() as address, sync_playwright() as playwright:
        for _ in range(loads):
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)  # with an empty cache
            page = browser.new_page()
            for name, milliseconds in one_load(page, address).items():
                found.setdefault(name, []).append(milliseconds)
            browser.close()
    rows = [
        f"| {name} | {statistics.median(values):.0f} | {min(values):.0f} to {max(values):.0f} |"
        for name, values in found.items()
    ]
    return [
        f"## Paint: {RUNS:,} runs, and a run of {STEPS:,} steps with five numbers each",
        "",
        f"Milliseconds since the navigation. {loads} loads, each in a new browser. The first also reads the history.",
        "",
        "| | median | range |",
        "|---|---|---|",
        *rows,
        "",
    ]


def one_load(page: Any, address: str) -> dict[str, float]:
    began = time.perf_counter()

    def passed() -> float:
        return (time.perf_counter() - began) * 1000

    page.goto(address, wait_until="commit")
    page.locator("#runs button").first.wait_for()
    runs = passed()
    page.locator("#held-out-chart canvas").wait_for()
    quality = passed()
    page.locator("#loss-chart canvas").wait_for()
    curves = passed()
    return {
        "first paint, with the sentence and the counts": page.evaluate(MARKS)["first-contentful-paint"],
        "the strip of runs": runs,
        "quality over runs, first points": quality,
        "loss of the long run, first points": curves,
    }


@contextmanager
def many_runs() -> Iterator[str]:
    """Serve a stream with a long history. Yields the page's address."""
    from stage import Stage

    folder = Path(tempfile.mkdtemp(prefix="codelupe-page-"))
    pool = Pool(embedded.start(folder))
    try:
        migrate.apply(pool)
        stage = Stage(pool, folder / "home")
        stage.run("published", losses=(1.9, 1.7, 1.6))
        stage.query(
            "insert into codelupe.runs (stream, state, seed, epoch, launches, report, created_at, started_at, ended_at)"
            " select stream, case when n %% 5 = 0 then 'refused' else 'published' end, 1, 1, 1, report, now(), now(),"
            " now() from codelupe.runs, generate_series(2, %s) n where run_id = 1",
            (RUNS,),
        )
        run_id = stage.run("training", parent=1)
        stage.events(run_id, STEPS)
        stage.refresh()
        stage.waiting_files(118)
        stage.board.update(state="training", progress=Progress(run_id=run_id, step=STEPS, steps_total=STEPS))
        with stage.served() as address:
            yield address
    finally:
        pool.close()
        embedded.stop(folder)
        shutil.rmtree(folder)


# --- load -------------------------------------------------------------------------------------------------------


class Pages:
    """The requests of many open pages, as the page's script sends them."""

    def __init__(self, host: str, run_id: int) -> None:
        self._host, self._run_id = host, run_id
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._page, args=(n,), daemon=True) for n in range(PAGES)]
        self.requests = 0

    def __enter__(self) -> Pages:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(20)

    def _page(self, number: int) -> None:
        self._stop.wait(number * 2.0 / PAGES)
        connection = http.client.HTTPConnection(self._host, timeout=20)
        while not self._stop.is_set():
            now = json.loads(self._ask(connection, "overview"))
            self._ask(connection, f"runs/{self._run_id}/curves?points=300")
            self._stop.wait(now["poll_seconds"])

    def _ask(self, connection: http.client.HTTPConnection, path: str) -> bytes:
        self.requests += 1
        connection.request("GET", f"/api/v1/{path}")
        return connection.getresponse().read()


def load(windows: int) -> list[str]:
    """Train without and with pages in turn, and return what was measured as Markdown."""
    speeds: dict[str, list[float]] = {"without": [], "with": []}
    health: dict[str, list[float]] = {"without": [], "with": []}
    requests = 0
    with training() as (host, home):
        run_id = wait_for_step(host)
        for _ in range(windows):
            for kind in speeds:
                if kind == "with":
                    with Pages(host, run_id) as pages:
                        time.sleep(SETTLE_SECONDS)
                        before = pages.requests
                        measured(host, home, run_id, speeds[kind], health[kind])
                        requests += pages.requests - before
                else:
                    time.sleep(2)
                    measured(host, home, run_id, speeds[kind], health[kind])
    ratio = statistics.median(speeds["with"]) / statistics.median(speeds["without"])
    rate = requests / (windows * WINDOW_SECONDS)
    return [
        f"## {PAGES} pages while the tiny model trains",
        "",
        f"{windows} pairs of windows of {WINDOW_SECONDS:.0f} s. The pages sent {rate:.1f} requests a second.",
        "",
        "| | tokens a second, median | `/health` median | `/health` p99 | `/health` longest |",
        "|---|---|---|---|---|",
        *[
            f"| {kind} pages | {statistics.median(speeds[kind]):,.0f} | {statistics.median(times) * 1000:.1f} ms "
            f"| {statistics.quantiles(times, n=100)[98] * 1000:.1f} ms | {max(times) * 1000:.1f} ms |"
            for kind, times in health.items()
        ],
        "",
        f"Speed with pages: {ratio:.3f} of that without.",
        "",
    ]


def measured(host: str, home: Path, run_id: int, speeds: list[float], health: list[float]) -> None:
    """Measure one window: the training's speed from its events, and the answers of /health."""
    events = home / "runs" / f"{run_id:06d}" / "events.jsonl"
    offset, end = events.stat().st_size, time.monotonic() + WINDOW_SECONDS
    while time.monotonic() < end:
        began = time.perf_counter()
        connection = http.client.HTTPConnection(host, timeout=20)
        connection.request("GET", "/health")
        connection.getresponse().read()
        connection.close()
        health.append(time.perf_counter() - began)
        time.sleep(0.1)
    with events.open("rb") as file:
        file.seek(offset)
        records = [json.loads(line) for line in file.read().splitlines()]
    steps = [record for record in records if record.get("event") == "step"]
    speeds += [record["tokens_per_second"] for record in steps]


@contextmanager
def training() -> Iterator[tuple[str, Path]]:
    """Start a service that trains for a long time. Yields its host and its home."""
    folder = Path(tempfile.mkdtemp(prefix="codelupe-page-"))
    recipe = yaml.safe_load((ROOT / "recipes" / "embedded.yaml").read_text())
    recipe["training"] |= {"num_epochs": 200}
    recipe["evaluation"] = {"interval_fraction": 1.0, "patience": 1000}
    recipe["tracking"] = {"sample_predictions": 0, "tensorboard": False}
    recipe["service"] |= {"min_new_files": 100, "max_dataset_size": 110}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("CODELUPE_", "DATABASE_", "WANDB_"))
    }
    process = subprocess.Popen(
        [sys.executable, "-c", "from service.cli.main import main; main()", "up", "--recipe", str(path)],
        cwd=folder, text=True, stdout=subprocess.PIPE, stderr=(folder / "log").open("w"),
        env={**kept, "CODELUPE_HOME": str(folder / "home"), "METRICS_PORT": "0", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.search(r"http://([\d.:]+)/health", line):
                yield found[1], folder / "home"
                break
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(120)
        shutil.rmtree(folder, ignore_errors=True)


def wait_for_step(host: str) -> int:
    """Wait until the run's first steps are done, and return its id."""
    while True:
        connection = http.client.HTTPConnection(host, timeout=20)
        connection.request("GET", "/api/v1/overview")
        run = json.loads(connection.getresponse().read())["run"]
        if run is not None and run["step"] > 5:
            return int(run["run_id"])
        time.sleep(1)


if __name__ == "__main__":
    main()
