"""Drives a service in its own folder as a user would: with its command, its endpoints and signals."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-c", "from service.cli.main import main; main()"]
CLEAN = (
    "DATABASE_URL",
    "POSTGRES_",
    "CODELUPE_",
    "WANDB_",
    "HF_TOKEN",
    "METRICS_",
    "MIN_NEW_FILES",
    "MODEL",
    "LOG_FORMAT",
    "PUBLIC_URL",
    "ALERT_",
)


def quick_recipe(path: Path, **changes: Any) -> Path:
    """Write the embedded recipe with a gate that gives each run a verdict at once, however few its files."""
    data = yaml.safe_load((ROOT / "recipes" / "embedded.yaml").read_text())
    data |= {"gate": {"evidence": "point", "examination": False}} | changes
    path.write_text(yaml.safe_dump(data))
    return path


class Codelupe:
    """One CODELUPE_HOME and its service. Its recipe is a quick one unless CODELUPE_RECIPE names another."""

    def __init__(self, home: Path, **settings: str) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(CLEAN)}
        self.home = home
        home.mkdir(parents=True, exist_ok=True)
        self.environment = {
            **kept,
            "CODELUPE_HOME": str(home),
            "CODELUPE_RECIPE": str(quick_recipe(home / "quick.yaml")),
            "METRICS_PORT": "0",
            "PYTHONPATH": str(ROOT),
            **settings,
        }
        self.service: subprocess.Popen[str] | None = None
        self.address = ""

    def run(self, *arguments: str, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command until it ends."""
        return subprocess.run(
            [*COMMAND, *arguments],
            env={**self.environment, **environment},
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def json(self, *arguments: str) -> Any:
        """Return the output of a command with --json."""
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    def up(self, *arguments: str) -> None:
        """Start the service, and wait until it prints its address."""
        self.output = (self.home / "up.out").open("a+")
        start = self.output.seek(0, os.SEEK_END)
        with (self.home / "up.err").open("a") as errors:
            self.service = subprocess.Popen(
                [*COMMAND, "up", *arguments],
                env=self.environment,
                cwd=self.home,
                stdout=self.output,
                stderr=errors,
                text=True,
            )

        def address() -> str | None:
            assert self.service is not None and self.service.poll() is None, self.printed()
            found = re.search(r"http://([\d.:]+)/health", self.text(self.home / "up.out")[start:])
            return found and found.group(1)

        self.address = wait_for(address, "the service to listen", 90)

    def printed(self) -> str:
        """Return everything that the service printed."""
        return self.text(self.home / "up.out") + self.text(self.home / "up.err")

    @staticmethod
    def text(path: Path) -> str:
        return path.read_text() if path.exists() else ""

    def get(self, path: str, accept: str = "*/*") -> tuple[int, str, str]:
        """Send a GET request. Return the status, the Content-Type and the body."""
        request = urllib.request.Request(f"http://{self.address}{path}", headers={"Accept": accept})
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.headers["Content-Type"], answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.headers["Content-Type"], error.read().decode()

    def health(self) -> dict[str, Any]:
        return dict(json.loads(self.get("/health")[2]))

    def metric(self, name: str) -> Any:
        """Return one metric from the JSON form."""
        return json.loads(self.get("/metrics")[2])["metrics"][name]

    def published(self) -> int:
        return int(self.metric("runs")["published"])

    def trainer_pid(self) -> int | None:
        """Return the process id of the live trainer, found by its command line."""
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                except OSError:
                    continue
                if words[1:4] == ["-m", "trainer", "run"] and words[4].startswith(str(self.home)):
                    return int(entry.name)
        return None

    def kill_service(self) -> None:
        assert self.service is not None
        self.service.send_signal(signal.SIGKILL)
        self.service.wait(10)

    def kill_trainer(self) -> None:
        pid = self.trainer_pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    def stop(self) -> subprocess.CompletedProcess[str]:
        done = self.run("stop", timeout=150)
        if self.service is not None:
            self.service.wait(30)
        return done


def wait_for(condition: Callable[[], Any], what: str, seconds: float) -> Any:
    """Poll until the condition returns a true value, and return it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.1)
    raise AssertionError(f"waited {seconds:.0f} s for {what}")
