"""The parts of a cycle: seconds by part of one run of the trainer, and of one `codelupe up --once`."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from trainer.records import EventTail
from trainer.run_dir import RunDirectory

RUN_PARTS = {
    "start of the process, imports": ("launch", "started"),
    "check": ("started", "check end"),
    "samples and model": ("check end", "fit begin"),
    "evaluation before the first step": ("fit begin", "evaluation"),
    "training: steps, evaluations, checkpoints": ("evaluation", "fit end"),
    "judge": ("judge begin", "judge end"),
    "export: predictions": ("export begin", "prediction"),
    "export: files": ("prediction", "finished"),
    "end of the process": ("finished", "exit"),
}
"""Maps each part to the marks at its beginning and its end."""
CYCLE_PARTS = {
    "claim": ("claim begin", "launch"),
    **{name: marks for name, marks in RUN_PARTS.items() if name != "end of the process"},
    "end of the process": ("finished", "examination"),
    "examination": ("examination", "examined"),
    "judgement, publication, ledger": ("examined", "published"),
    "all, from the claim to the published adapter": ("claim begin", "published"),
}
TRAINING = "training: steps, evaluations, checkpoints"


def trainer_parts(checkout: Path, root: Path, cache: Path) -> dict[str, float]:
    """Train a run directory to its end with a checkout's trainer."""
    directory, launch, used = RunDirectory(root), time.time(), _processor_seconds()
    with directory.log.open("w") as log:
        done = subprocess.run(
            [sys.executable, "-m", "trainer", "run", str(root)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=checkout, env=_environment(cache), check=False,
        )  # fmt: skip
    end = time.time()
    if done.returncode != 0:
        raise SystemExit(f"the trainer of {checkout} failed:\n{directory.log.read_text()}")
    marks = {"launch": launch, "exit": end, **_marks(directory)}
    return _summed(RUN_PARTS, marks) | {
        "all": end - launch,
        "all but the training": end - launch - _between(marks, *RUN_PARTS[TRAINING]),
        "processor time of all": _processor_seconds() - used,
    }


def service_parts(checkout: Path, home: Path, cache: Path) -> dict[str, float]:
    """Run a checkout's service in an empty folder up to its first verdict, which must publish."""
    environment = _environment(cache) | {"CODELUPE_HOME": str(home), "METRICS_PORT": "0", "LOG_FORMAT": "json"}
    used = _processor_seconds()
    done = _codelupe(["up", "--once"], checkout, environment)
    used = _processor_seconds() - used
    runs = json.loads(_codelupe(["runs", "--json"], checkout, environment).stdout)
    if runs[-1]["state"] != "published":
        raise SystemExit(f"the service of {checkout} published nothing:\n{done.stderr[-2000:]}")
    directory = RunDirectory(home / "runs" / "000001")
    marks = {
        "claim begin": _seconds(runs[-1]["created_at"]),
        "launch": _logged(done.stderr, "Training process"),
        **_marks(directory),
        "examination": _logged(done.stderr, "Examination"),
        "examined": directory.examination.stat().st_mtime,
        "published": _logged(done.stderr, "Pointer"),
    }
    parts = _summed(CYCLE_PARTS, marks)
    whole = parts["all, from the claim to the published adapter"]
    return parts | {"all but the training": whole - parts[TRAINING], "processor time of `up --once`": used}


def _codelupe(arguments: Sequence[str], checkout: Path, environment: Mapping[str, str]) -> Any:
    command = [sys.executable, "-c", "from service.cli.main import main; main()", *arguments]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=checkout, env=dict(environment),
        check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise SystemExit(f"`codelupe {arguments[0]}` of {checkout} failed:\n{done.stderr[-2000:]}")
    return done


def _environment(cache: Path) -> dict[str, str]:
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "XDG_CACHE_HOME": str(cache)}
    environment.pop("PYTHONPATH", None)
    return environment


def _marks(directory: RunDirectory) -> dict[str, float]:
    """Return the time of each event. Of several with one name, the first."""
    marks: dict[str, float] = {}
    for event in EventTail(directory.events).new():
        name = f"{event['stage']} {event['state']}" if event["event"] == "stage" else str(event["event"])
        marks.setdefault(name, event["time"])
    return marks


def _logged(output: str, message: str) -> float:
    lines = (json.loads(line) for line in output.splitlines() if line.startswith("{"))
    return next(_seconds(line["time"]) for line in lines if line["message"] == message)


def _seconds(written: str) -> float:
    return datetime.fromisoformat(written).timestamp()


def _between(marks: Mapping[str, float], begin: str, end: str) -> float:
    return marks[end] - marks[begin]


def _summed(parts: Mapping[str, tuple[str, str]], marks: Mapping[str, float]) -> dict[str, float]:
    return {name: _between(marks, *ends) for name, ends in parts.items()}


def _processor_seconds() -> float:
    """Return what the processes that have ended used."""
    use = resource.getrusage(resource.RUSAGE_CHILDREN)
    return use.ru_utime + use.ru_stime
