"""`python -m trainer reward`: from a request to reward.json. Reads like a table of contents.

    round 1: answers of the start ─▶ learn ─▶ round 2: answers ─▶ learn ─▶ … ─▶ answers of the result

The answers of a round measure what the round before has learned, on training tasks and on held-out ones.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.utils.logging import disable_progress_bar

from trainer.errors import UnusableInput
from trainer.evaluate.command import evaluate_command
from trainer.evaluate.engines import Sampling
from trainer.evaluate.execute import choose_runner
from trainer.evaluate.prompts import Style
from trainer.evaluate.request import EvaluationRequest
from trainer.model.base import resolve_for
from trainer.model.load import load_tokenizer
from trainer.model.lora import check_parent
from trainer.recipe import Recipe
from trainer.recipe_file import dump_recipe, load_recipe
from trainer.records import json_line
from trainer.reward.answers import Answer, kept_answers, pass_rate
from trainer.reward.grpo import Grpo
from trainer.reward.job import Job, Method
from trainer.reward.rejection import Rejection
from trainer.reward.request import RewardRequest
from trainer.reward.tasks import Tasks, read_tasks
from trainer.run_dir import MANIFEST, RunDirectoryError, held_lock, read_json, sha256_file, write_json, write_text
from trainer.stop import StopRequest, write_stderr
from trainer.world_size import world_size

METHODS: dict[str, Callable[[Job, int], Method]] = {"rejection": Rejection, "grpo": Grpo}
SETTINGS, REPORT, RESULT, SAMPLES = "settings.json", "report.json", "reward.json", "samples.jsonl"


def reward_command(request: RewardRequest, stop: StopRequest) -> None:
    """Train on rewards, or go on with it.

    Raises:
        UnusableInput, OutOfMemory, Diverged, Stopped
    """
    disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)  # about transformers' own names
    recipe = load_recipe(request.recipe)
    if recipe.distributed.launcher != "process":
        write_stderr(f"distributed.launcher: {recipe.distributed.launcher} has no effect. reward uses one process")
    tasks = read_tasks(request.tasks, request.split, held_out_fraction=recipe.reward.held_out_fraction)
    check_request(request, recipe)
    runner = choose_runner()  # before hours of generation
    recipe = resolve_for(recipe, request.adapter)
    tokenizer = load_tokenizer(recipe.base)
    style = choose_style(recipe, tokenizer)
    job = Job(
        request=request, recipe=recipe, tokenizer=tokenizer, tasks=tasks, style=style, runner=runner, stop=stop
    )  # fmt: skip
    with opened_folder(job):
        run_rounds(job)


def check_request(request: RewardRequest, recipe: Recipe) -> None:
    """Check what the request and the recipe must have in common.

    Raises:
        UnusableInput: they contradict each other.
    """
    if world_size() > 1:
        raise UnusableInput("reward trains in one process. Start it without torchrun")
    if request.rounds < 1 or request.samples_per_task < 1:
        raise UnusableInput("--rounds and --samples-per-task must be 1 or more")
    if request.method == "grpo" and recipe.reward.temperature != 1:
        raise UnusableInput(
            f"--method grpo needs reward.temperature 1, not {recipe.reward.temperature:g}: its gradient is that of "
            "what was drawn. Change the recipe, or use --method rejection"
        )
    if request.method == "grpo" and request.samples_per_task < 2:
        raise UnusableInput("--method grpo compares the answers to a task. Use --samples-per-task 2 or more")
    if request.adapter is not None:
        if not (request.adapter / MANIFEST).is_file():
            raise UnusableInput(
                f"--adapter {request.adapter} has no {MANIFEST}. Name an adapter folder that codelupe wrote"
            )
        check_parent(request.adapter, recipe.lora)


def choose_style(recipe: Recipe, tokenizer: Any) -> Style:
    """Return how tasks are asked.

    Raises:
        UnusableInput: the base has no chat template.
    """
    if recipe.reward.style == "chat" and not tokenizer.chat_template:
        raise UnusableInput(f"reward.style: {recipe.base.model} has no chat template. Use completion")
    if recipe.reward.style == "auto":
        return "chat" if tokenizer.chat_template else "completion"
    return "chat" if recipe.reward.style == "chat" else "completion"


@contextmanager
def opened_folder(job: Job) -> Iterator[None]:
    """Open a new folder, or one with the same settings to go on. No other process writes to it meanwhile.

    Raises:
        UnusableInput: it has other settings, holds something else, or another process has it.
    """
    root = job.request.to
    try:
        root.mkdir(parents=True, exist_ok=True)
        with held_lock(root / "lock", wait_seconds=0):
            _check_settings(root, _settings(job))
            yield
    except RunDirectoryError as error:
        raise UnusableInput(f"{error}. Wait for the other process, or name another folder with --to") from error
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise UnusableInput(f"the folder {root} cannot be used ({error}). Name another one with --to") from error


def run_rounds(job: Job) -> None:
    """Run all rounds that are not complete, measure the result, and write reward.json."""
    request = job.request
    if is_complete(request):
        write_stderr(f"{request.to} is complete")
        return
    done = completed_rounds(job)
    (request.to / RESULT).unlink(missing_ok=True)  # it is written last
    method = METHODS[request.method](job, done)
    training = {task.task_id for task in job.tasks.training}
    for number in range(done + 1, request.rounds + 2):
        answers = method.answers(number)
        mine = [answer for answer in answers if answer.task.task_id in training]
        measured = rates(number - 1, answers, job.tasks)
        _say(measured)
        if number > request.rounds:
            break
        began = time.monotonic()
        facts = method.learn(number, mine)
        write_round(job, number, mine, {**measured, **facts}, learn_seconds=round(time.monotonic() - began, 3))
        method.settle(number)
        job.stop.check()
    adapter = method.finish()
    if adapter is None:
        raise UnusableInput(
            f"no answer passed in {request.rounds} rounds, so nothing was trained. Use easier tasks, or more answers "
            "(--samples-per-task)"
        )
    _link(request.to / "adapter", adapter)
    write_result(job, measured, adapter)


def rates(after_round: int, answers: Sequence[Answer], tasks: Tasks) -> dict[str, Any]:
    """Return the pass rates of the adapter after a round. 0: the start."""
    held_out = {task.task_id for task in tasks.held_out}
    parts = {
        "training": [answer for answer in answers if answer.task.task_id not in held_out],
        "held_out": [answer for answer in answers if answer.task.task_id in held_out],
    }
    return {"after_round": after_round, **{name: pass_rate(part) for name, part in parts.items()}}


def is_complete(request: RewardRequest) -> bool:
    """Whether reward.json is there, with as many rounds and the same benchmark."""
    path = request.to / RESULT
    if not path.is_file():
        return False
    found = read_json(path)
    return len(found["rounds"]) == request.rounds and found["evaluated_on"] == _name(request.evaluate)


def _name(file: Path | None) -> str | None:
    return None if file is None else str(file)


def completed_rounds(job: Job) -> int:
    """Return how many rounds have their report.

    Raises:
        UnusableInput: more than are asked for.
    """
    number = 0
    while (job.round_folder(number + 1) / REPORT).is_file():
        number += 1
    if number > job.request.rounds:
        raise UnusableInput(
            f"{job.request.to} has {number} rounds already, and --rounds {job.request.rounds} asks for fewer. Use "
            f"--rounds {number} or more, or another folder (--to)"
        )
    return number


def write_round(
    job: Job, number: int, answers: Sequence[Answer], report: dict[str, Any], *, learn_seconds: float
) -> None:
    """Write the passing answers as records, and then the report, which makes the round count."""
    folder = job.round_folder(number)
    summary = read_json(folder / "answers" / "evaluation.json")
    summary["seconds"]["learn"] = learn_seconds
    kept = kept_answers(answers, job.recipe.reward.most_answers_per_task)
    write_text(folder / SAMPLES, "".join(json_line(_record(job, number, answer)) for answer in kept))
    write_json(folder / REPORT, {"round": number, **report, **summary})


def write_result(job: Job, measured: dict[str, Any], adapter: Path) -> None:
    """Write all records, the evaluation, and reward.json."""
    request = job.request
    folders = [job.round_folder(number) for number in range(1, request.rounds + 1)]
    write_text(request.to / SAMPLES, "".join((folder / SAMPLES).read_text(encoding="utf-8") for folder in folders))
    reports = [read_json(folder / REPORT) for folder in folders]
    result = {
        "format": 1,
        "method": request.method,
        "adapter": str(request.to / "adapter"),
        "tasks": {"training": len(job.tasks.training), "held_out": len(job.tasks.held_out)},
        "samples_per_task": request.samples_per_task,
        "rates": [
            *({name: report[name] for name in ("after_round", "training", "held_out")} for report in reports),
            measured,
        ],
        "rounds": reports,
        "samples": str(request.to / SAMPLES),
        "evaluated_on": _name(request.evaluate),
        "evaluation": None if request.evaluate is None else evaluate_both(job, request.evaluate, adapter),
    }
    write_json(request.to / RESULT, result)


def evaluate_both(job: Job, file: Path, adapter: Path) -> dict[str, Any]:
    """Measure the start and the result on a benchmark: one greedy answer to each task. Returns the paired result."""
    folder = job.request.to / "evaluation"
    for name, of in (("start", job.request.adapter), (f"after-{job.request.rounds}", adapter)):
        evaluate_command(
            EvaluationRequest(
                recipe=job.request.recipe, to=folder / name, suite=file.name.split(".")[0], file=file, adapter=of,
                current=None, split=None, max_samples=None, samples_per_task=1,
                sampling=Sampling(max_tokens=job.recipe.reward.max_tokens, seed=job.recipe.training.seed),
                style=job.style, engine="transformers", url=None, served_name=None,
                batch_size=job.recipe.reward.batch_size, execute=True,
                against=None if name == "start" else folder / "start",
            ),
            job.stop,
        )  # fmt: skip
    found: dict[str, Any] = read_json(folder / f"after-{job.request.rounds}" / "evaluation.json")["against"]["passed"]
    return found


def _record(job: Job, number: int, answer: Answer) -> dict[str, Any]:
    """Return an answer as a record that `codelupe drop` reads."""
    question = job.asking(number, None).question(answer.task)
    prompt = question.messages[-1][1] if question.text is None else question.text
    metadata = {"task": answer.task.task_id, "round": number, "sample": answer.sample}
    return {"prompt": prompt, "completion": answer.text, "language": "python", "metadata": metadata}


def _settings(job: Job) -> dict[str, Any]:
    """What must not change between two starts. The number of rounds may grow."""
    request = job.request
    return {
        "method": request.method,
        "recipe_sha256": hashlib.sha256(dump_recipe(job.recipe).encode()).hexdigest(),
        "tasks_sha256": sha256_file(request.tasks),
        "split": request.split,
        "samples_per_task": request.samples_per_task,
        "adapter": None if request.adapter is None else sha256_file(request.adapter / MANIFEST),
        "smoke": request.smoke,
    }


def _check_settings(root: Path, settings: dict[str, Any]) -> None:
    path = root / SETTINGS
    if not path.is_file():
        if others := sorted(found.name for found in root.iterdir() if found.name != "lock"):
            raise UnusableInput(f"{root} holds {', '.join(others[:5])} and no training. Name another folder with --to")
        write_json(path, settings)
        return
    try:
        before = dict(read_json(path))
    except (OSError, ValueError, TypeError) as error:
        raise UnusableInput(f"{path} cannot be read ({error}). Name another folder with --to") from error
    if changed := [name for name in settings if before.get(name) != settings[name]]:
        raise UnusableInput(
            f"{root} holds a training with other settings: {', '.join(changed)} differ. Use the same ones to go on "
            "with it (only --rounds may grow), or name another folder with --to"
        )


def _link(link: Path, adapter: Path) -> None:
    """Make FOLDER/adapter lead to the last round's adapter."""
    if link == adapter:
        return
    link.unlink(missing_ok=True)
    link.symlink_to(adapter.relative_to(link.parent) if adapter.is_relative_to(link.parent) else adapter)


def _say(measured: dict[str, Any]) -> None:
    parts = [
        f"{name.replace('_', '-')} tasks {part['value']:.3f} ({part['low']:.3f} to {part['high']:.3f})"
        for name, part in ((name, measured[name]) for name in ("training", "held_out"))
    ]
    write_stderr(f"after round {measured['after_round']}: pass rate of {', '.join(parts)}")
