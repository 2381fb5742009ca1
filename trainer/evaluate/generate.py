"""Generates the answers that an evaluation lacks, and appends each as it comes. (no torch)"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from trainer.evaluate.engines import Engine, Request, Sampling
from trainer.evaluate.results import Results
from trainer.stop import StopRequest

NOTE_SECONDS = 10.0


def generate(
    engine: Callable[[], Engine],
    requests: Sequence[Request],
    sampling: Sampling,
    results: Results,
    *,
    stop: StopRequest,
    on_note: Callable[[str], None],
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Answer what has no answer yet. The engine is only opened if there is something to do.

    Args:
        on_progress: is told how many answers there are, and how many there will be. None: `on_note` says it

    Raises:
        Stopped: a stop was requested. Answers so far are kept.
        OutOfMemory, UnusableInput: the engine cannot go on.
    """
    done = results.read_generations()
    left = [request for request in requests if (request.task_id, request.sample) not in done]
    if already := len(requests) - len(left):
        on_note(f"{already} of {len(requests)} answers are there already")
    if not left:
        return
    opened = engine()
    began = last = time.monotonic()
    for made, answer in enumerate(opened.answer(left, sampling), 1):
        with stop.deferred():
            results.append(results.generations, [answer])
        stop.check()
        if on_progress is not None:
            on_progress(already + made, len(requests))
            continue
        now = time.monotonic()
        if now - last >= NOTE_SECONDS or made == len(left):
            last = now
            on_note(f"generated {made} of {len(left)} answers, {made / (now - began):.2f} a second")
