"""Drives the compose file as a user would: in its own folder, with docker-compose, docker and HTTP requests."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TRAINER, POSTGRES, INIT = "codelupe-qwen-cpu", "codelupe-postgres", "codelupe-init"
ADDRESS = "http://127.0.0.1:8093"
BUILD = {"DOCKER_BUILDKIT": "1", "COMPOSE_DOCKER_CLI_BUILD": "1"}
OUR_OWN = ("POSTGRES_", "CODELUPE_", "COMPOSE_", "TRAINER_", "MODEL", "MIN_NEW_FILES", "VLLM_", "PUBLIC_URL")


def docker(*arguments: str, check: bool = True, timeout: float = 900) -> str:
    """Run a docker command. Return its standard output."""
    done = subprocess.run(
        ["docker", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
        env={**os.environ, **BUILD},
    )
    assert not check or done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr}"
    return done.stdout.strip()


def compose_commands() -> dict[str, list[str]]:
    """Return the compose commands of this machine by major version."""
    found = {}
    for name, command in (("v1", ["docker-compose"]), ("v2", ["docker", "compose"])):
        if shutil.which(command[0]) is None:
            continue
        done = subprocess.run([*command, "version", "--short"], capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.strip().lstrip("v").startswith(name[1]):
            found[name] = command
    return found


def checkout(target: Path) -> Path:
    """Copy the files that a clone of the working tree would contain."""
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    for name in names:
        if name and (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)
    return target


class Stack:
    """The containers of one checkout."""

    def __init__(self, folder: Path, command: list[str], environment: Mapping[str, str] | None = None) -> None:
        self.folder, self.command = folder, command
        kept = {name: value for name, value in os.environ.items() if not name.startswith(OUR_OWN)}
        self.environment = {**kept, **BUILD, **(environment or {})}

    def compose(self, *arguments: str, check: bool = True, timeout: float = 900) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*self.command, *arguments],
            cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False, timeout=timeout,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{' '.join(arguments)}: {done.stdout}\n{done.stderr}"
        return done

    def up(self) -> None:
        """Run `docker-compose up -d trainer-cpu`, and wait until it is healthy."""
        self.compose("up", "-d", "trainer-cpu")
        self.wait_until_healthy()

    def wait_until_healthy(self) -> None:
        for container in (POSTGRES, TRAINER):
            wait_for(
                lambda name=container: state(name)["Health"]["Status"] == "healthy", f"{container} to be healthy", 180
            )

    def down(self, *arguments: str) -> None:
        self.compose("--profile", "cpu", "--profile", "serve", "--profile", "evaluation", "down", *arguments)

    def codelupe(self, *arguments: str) -> str:
        """Run a `codelupe` command inside the trainer's container."""
        return docker("exec", TRAINER, "codelupe", *arguments)

    def json(self, *arguments: str) -> Any:
        return json.loads(self.codelupe(*arguments, "--json"))

    def published(self) -> int:
        return len(self.json("adapters"))

    def wait_for_training(self, step: int = 1) -> int:
        """Wait until a run has taken at least `step` steps and at most half of its steps. Return its id."""

        def training() -> int | None:
            health = get("/health")
            metrics = get("/metrics")["metrics"]
            taken, steps = metrics["step"] or 0, metrics["steps"] or 0
            return health["run"] if health["state"] == "training" and step <= taken <= steps / 2 else None

        return int(wait_for(training, "a run to train", 240))

    def drop(self, files: int, tag: str) -> None:
        """Insert new rows through the published port, as an outside producer would."""
        import psycopg2

        connection = psycopg2.connect(self.database_url())
        with connection, connection.cursor() as cursor:
            for number in range(files):
                body = "\n".join(f"    total_{tag}_{line} = {number} * {line} + len('{tag}')" for line in range(30))
                code = f"def work_{tag}_{number}():\n{body}\n    return 0\n"
                cursor.execute(
                    "insert into code_files (repository, path, language, content, quality_score) "
                    "values (%s, %s, 'python', %s, 90)",
                    (f"test/{tag}", f"{number}.py", code),
                )
        connection.close()

    def database_url(self, password: str = "coding_pass") -> str:
        return f"postgresql://coding_user:{password}@127.0.0.1:5433/coding_db"

    def assert_audit_is_clean(self) -> None:
        found = self.json("audit")
        assert found["problems"] == []


def state(container: str) -> dict[str, Any]:
    """Return a container's state, as reported by the engine."""
    found: dict[str, Any] = json.loads(docker("inspect", container, "--format", "{{json .State}}"))
    return found


def get(path: str) -> dict[str, Any]:
    """Return the JSON answer of the published address. While nothing answers, its values are None."""
    try:
        with urllib.request.urlopen(ADDRESS + path, timeout=10) as answer:
            body: dict[str, Any] = json.load(answer)
            return body
    except OSError:
        return {"state": None, "run": None, "metrics": {"step": None, "steps": None}}


def wait_for(condition: Callable[[], Any], what: str, seconds: float) -> Any:
    """Poll until the condition returns a true value, and return it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.5)
    logs = docker("logs", "--tail", "30", TRAINER, check=False)
    raise AssertionError(f"waited {seconds:.0f} s for {what}; {docker('ps', '-a')}\n{logs}")
