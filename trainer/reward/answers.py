"""One round's answers: generated, executed, and what is kept of them. (no torch)"""

from __future__ import annotations

import ast
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer.evaluate.engines import Engine, Finish, Request, Sampling
from trainer.evaluate.execute import Runner, execute
from trainer.evaluate.generate import generate
from trainer.evaluate.prompts import Question, Style, completion_of, question_for
from trainer.evaluate.results import open_results
from trainer.evaluate.statistics import estimate
from trainer.evaluate.suites import Task
from trainer.reward.once import Once, parsed
from trainer.stop import StopRequest, write_stderr


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An answer with its verdict."""

    task: Task
    sample: int
    """Number of the answer to this task, from 0."""
    text: str
    """As generated, without the end token."""
    completion: str
    """Its code, as `Task.program` needs it."""
    finish: Finish
    passed: bool

    @property
    def program(self) -> str:
        return self.task.program(self.completion)


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How each round asks its tasks."""

    tasks: Sequence[Task]
    style: Style
    samples_per_task: int
    sampling: Sampling
    facts: Mapping[str, Any]
    """What else decides the answers, such as base and adapter."""

    def requests(self) -> list[Request]:
        """Return all requests."""
        return [
            Request(task_id=task.task_id, sample=sample, question=self.question(task))
            for task in self.tasks
            for sample in range(self.samples_per_task)
        ]

    def question(self, task: Task) -> Question:
        """Return what a task is asked."""
        return question_for(task, self.style)


def answer_tasks(
    asking: Asking, folder: Path, engine: Callable[[], Engine], runner: Runner, stop: StopRequest
) -> list[Answer]:
    """Answer and execute what the folder lacks. Returns all answers, by task and sample.

    Raises:
        Stopped: a stop was requested. The answers so far are kept.
        OutOfMemory, UnusableInput
    """
    by_name = {task.task_id: task for task in asking.tasks}
    requests = asking.requests()
    settings = {**asking.facts, "style": asking.style, **asking.sampling.facts()}
    with open_results(folder, settings) as results:
        began = time.monotonic()
        generate(engine, requests, asking.sampling, results, stop=stop, on_note=write_stderr)
        generated = time.monotonic()
        execute(by_name, requests, results, asking.style, Once(runner), stop=stop, on_note=write_stderr)
        texts, verdicts = results.read_generations(), results.read_outcomes()
        found = []
        for request in requests:
            key = (request.task_id, request.sample)
            task, answer = by_name[request.task_id], texts[key]
            found.append(
                Answer(
                    task=task,
                    sample=request.sample,
                    text=answer.text,
                    completion=completion_of(task, answer.text, asking.style),
                    finish=answer.finish,
                    passed=verdicts[key].passed,
                )
            )
        results.write_summary(
            {
                "answers": len(found),
                "passed": sum(answer.passed for answer in found),
                "cut_at_max_tokens": sum(answer.finish == "length" for answer in found),
                "seconds": {
                    "generate": round(generated - began, 3),
                    "execute": round(time.monotonic() - generated, 3),
                },
            }
        )
    return found


def by_task(answers: Sequence[Answer]) -> dict[str, list[Answer]]:
    """Return the answers of each task."""
    groups: dict[str, list[Answer]] = {}
    for answer in answers:
        groups.setdefault(answer.task.task_id, []).append(answer)
    return groups


def pass_rate(answers: Sequence[Answer]) -> dict[str, Any]:
    """Return the share of answers that pass, with an interval over tasks, and the share of each task."""
    shares = {
        name: sum(answer.passed for answer in group) / len(group) for name, group in by_task(answers).items()
    }  # fmt: skip
    return {**asdict(estimate(list(shares.values()))), "by_task": {name: round(v, 4) for name, v in shares.items()}}


def kept_answers(answers: Sequence[Answer], most_per_task: int) -> list[Answer]:
    """Return the answers to train on: they pass, are whole, and differ in more than layout and comments."""
    return [
        answer for group in by_task(answers).values() for answer in list(_distinct(group))[:most_per_task]
    ]  # fmt: skip


def _distinct(answers: Sequence[Answer]) -> Iterator[Answer]:
    seen: set[str] = set()
    for answer in answers:
        is_usable = answer.passed and answer.finish == "stop" and answer.text.strip()
        if is_usable and (code := normalized(answer.program)) not in seen:
            seen.add(code)
            yield answer


def normalized(program: str) -> str:
    """Return code without layout and comments."""
    tree = parsed(program)
    return program.strip() if tree is None else ast.dump(tree)
