"""Run measurements in processes of their own, one after the other, within a time limit.

Two such models do not fit on a card at once. What fails, hangs or runs out of memory there is a line of the results.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Timer
from time import monotonic
from typing import Any

HERE = Path(__file__).resolve().parent
LOGS = HERE.parents[1] / "build" / "bench" / "gpu"
MARK = "\x1e"
"""Marks a line that holds an answer. Libraries print other lines."""
LEAST_SECONDS = 10
"""A measurement is not started with less time: Python's imports alone take some seconds."""
WHOLE_MODEL = ("step", "peer")
"""Kinds of measurement that load the whole model. The longest so far is what the next one is expected to take."""
Facts = dict[str, Any]


class Jobs:
    """Starts the measurements. None starts when the time left is too short for it."""

    def __init__(self, minutes: float) -> None:
        self.minutes = minutes
        self.ends = monotonic() + 60 * minutes
        self.longest = 0.0
        """Seconds of the longest measurement of the whole model."""

    def run(self, name: str, *, kind: str, **job: Any) -> Iterator[Facts]:
        """Run a measurement. Yields its answers as they come: each has all that is measured so far.

        The last answer has `failed` if nothing was measured, `incomplete` if something is missing, and `not_run` if
        the time was too short; each holds the reason.
        """
        print(f"· {name}", flush=True)
        if reason := self._too_late(kind):
            print(f"  not run: {reason}", flush=True)
            yield {"not_run": reason}
            return
        began, facts = monotonic(), {}
        for facts in self._answers(name, {"name": name, "kind": kind, **job}):
            yield facts
        if kind in WHOLE_MODEL:
            self.longest = max(self.longest, monotonic() - began)
        print(f"  {facts.get('failed') or json.dumps(facts)}", flush=True)

    def _too_late(self, kind: str) -> str | None:
        left = self.ends - monotonic()
        needed = max(LEAST_SECONDS, self.longest if kind in WHOLE_MODEL else 0)
        if left >= needed:
            return None
        return f"{max(0, left):.0f} s of {self.minutes:g} minutes were left, and it takes about {needed:.0f} s"

    def _answers(self, name: str, job: Facts) -> Iterator[Facts]:
        log = LOGS / f"{re.sub('[^a-z0-9]+', '-', name.lower())}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **os.environ,
                       "PYTORCH_ALLOC_CONF": "expandable_segments:True"}  # fmt: skip
        command = [sys.executable, str(HERE), "--job", json.dumps(job)]
        facts: Facts = {}
        late = False
        with log.open("w") as errors:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)

            def stop() -> None:
                nonlocal late
                late = True
                process.kill()

            timer = Timer(max(0.0, self.ends - monotonic()), stop)
            timer.start()
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    if line.startswith(MARK):
                        facts = json.loads(line[1:])
                        yield facts
                code = process.wait()
            finally:  # also when this process is told to end: its measurement must not stay on the card
                timer.cancel()
                process.kill()
                process.wait()
        if late:
            yield ended(facts, f"stopped when the {self.minutes:g} minutes were over")
        elif code or not facts:
            yield ended(facts, f"ended with code {code}; see {log}")


def ended(facts: Facts, reason: str) -> Facts:
    """Return what was measured, with the reason why it is not more."""
    return {**facts, "incomplete": reason} if facts else {"failed": reason}
