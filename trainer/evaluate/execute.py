"""Runs the tests of a benchmark against generated answers, in the sandbox, and appends the verdicts. (no torch)"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from trainer.evaluate.engines import Generation, Request
from trainer.evaluate.prompts import Style, completion_of
from trainer.evaluate.results import Judgement, Results
from trainer.evaluate.sandbox.bubblewrap import check_available
from trainer.evaluate.sandbox.client import RemoteSandbox
from trainer.evaluate.sandbox.limits import Outcome
from trainer.evaluate.sandbox.run import run_task
from trainer.evaluate.suites import Task
from trainer.stop import StopRequest

NOTE_SECONDS = 10.0
Runner = Callable[[Task, str], Outcome]


def choose_runner() -> Runner:
    """Return what runs a task: the sandbox behind SANDBOX_SOCKET if that is set, else the one of this machine.

    Raises:
        UnusableInput: it does not answer, or does not start.
    """
    if path := os.environ.get("SANDBOX_SOCKET"):
        remote = RemoteSandbox(Path(path))
        remote.check()
        return remote.run_task
    check_available()
    return run_task


def execute(
    tasks: Mapping[str, Task],
    requests: Sequence[Request],
    results: Results,
    style: Style,
    runner: Runner,
    *,
    stop: StopRequest,
    on_note: Callable[[str], None],
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Judge the answers to `requests` that have no verdict yet.

    Args:
        on_progress: is told how many answers were executed, and how many are to be. None: `on_note` says it

    Raises:
        Stopped: a stop was requested. Verdicts so far are kept.
        UnusableInput: the sandbox fails. That is never counted against the model.
    """
    answers, judged = results.read_generations(), results.read_outcomes()
    keys = [(request.task_id, request.sample) for request in requests]
    left = [answers[key] for key in keys if key in answers and key not in judged]
    if not left:
        return
    began = last = time.monotonic()

    def judge(answer: Generation) -> Judgement:
        task = tasks[answer.task_id]
        outcome = runner(task, completion_of(task, answer.text, style))
        return Judgement(
            task_id=answer.task_id,
            sample=answer.sample,
            passed=outcome.passed,
            reason=outcome.reason,
            seconds=round(outcome.seconds, 3),
        )

    # A sandbox lives as long as the thread that started it.
    with ThreadPoolExecutor(max(1, min(8, os.cpu_count() or 1))) as threads:
        futures = [threads.submit(judge, answer) for answer in left]
        try:
            for made, future in enumerate(as_completed(futures), 1):
                with stop.deferred():
                    results.append(results.outcomes, [future.result()])
                stop.check()
                if on_progress is not None:
                    on_progress(made, len(left))
                    continue
                now = time.monotonic()
                if now - last >= NOTE_SECONDS or made == len(left):
                    last = now
                    on_note(f"executed {made} of {len(left)} answers, {made / (now - began):.2f} a second")
        finally:
            threads.shutdown(wait=True, cancel_futures=True)
