"""`python -m trainer evaluate`: from a request to evaluation.json. Reads like a table of contents."""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from trainer.errors import UnusableInput
from trainer.evaluate.engines import ENGINES, Engine, Model, Request
from trainer.evaluate.execute import choose_runner, execute
from trainer.evaluate.generate import generate
from trainer.evaluate.infilling import Gap, judge_gaps, make_gaps
from trainer.evaluate.measured import held_out_samples, measure, totals
from trainer.evaluate.prompts import Style, question_for
from trainer.evaluate.request import EvaluationRequest
from trainer.evaluate.results import Results, open_results
from trainer.evaluate.suites import Task, read_suite
from trainer.evaluate.summary import against, summarize
from trainer.events import Events
from trainer.model.base import resolve_for
from trainer.model.load import load_tokenizer
from trainer.model.loading import loading_told
from trainer.recipe import Recipe
from trainer.recipe_file import load_recipe
from trainer.records import Row, read_rows, write_evaluation
from trainer.run_dir import RunDirectoryError, read_json, sha256_file
from trainer.stop import StopRequest, write_stderr

WEIGHTS = "adapter_model.safetensors"


def evaluate_command(request: EvaluationRequest, stop: StopRequest) -> None:
    """Evaluate, or go on with an evaluation.

    Raises:
        UnusableInput, OutOfMemory, Diverged, Stopped
    """
    if request.execute and request.suite not in ("held-out", "fim"):
        choose_runner()  # before hours of generation
    disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)  # about transformers' own names
    recipe = resolve_for(load_recipe(request.recipe), request.adapter)
    tokenizer = load_tokenizer(recipe.base)
    with _loading_told(request):
        if request.suite == "held-out":
            _held_out(request, recipe, tokenizer, stop)
        elif request.suite == "fim":
            _infilling(request, recipe, tokenizer, stop)
        else:
            _benchmark(request, recipe, tokenizer, stop)


def _loading_told(request: EvaluationRequest) -> AbstractContextManager[None]:
    return nullcontext() if request.progress is None else loading_told(Events(request.progress).progress)


def _told(request: EvaluationRequest, stage: str) -> Callable[[int, int], None] | None:
    """Return what takes the progress of a stage, if somebody wants to know."""
    return None if request.progress is None else partial(Events(request.progress).progress, stage)


def choose_tasks(tasks: Sequence[Task], split: str | None, max_samples: int | None, file: Path) -> list[Task]:
    """Return the tasks of a split. Without `split`: MBPP's test split, or all of another benchmark.

    Raises:
        UnusableInput: there are none.
    """
    has_splits = any(task.split is not None for task in tasks)
    if split is None:
        split = "test" if has_splits else "all"
    chosen = [task for task in tasks if split == "all" or task.split == split]
    if not chosen:
        there = ", ".join(sorted({str(task.split) for task in tasks if task.split})) or "none: it is not MBPP"
        raise UnusableInput(f"--split {split}: {file} has no such task. Its splits are {there}")
    return chosen[:max_samples]


def _benchmark(request: EvaluationRequest, recipe: Recipe, tokenizer: Any, stop: StopRequest) -> None:
    tasks = choose_tasks(read_suite(request.file), request.split, request.max_samples, request.file)
    style: Style = "completion" if request.style == "completion" or not _chats(request, tokenizer) else "chat"
    asked = [
        Request(task_id=task.task_id, sample=sample, question=question_for(task, style))
        for task in tasks
        for sample in range(request.samples_per_task)
    ]
    facts = {"suite_sha256": sha256_file(request.file), "style": style}
    with open_results(request.to, _settings(request, recipe, facts)) as results:
        _generate(request, recipe, tokenizer, asked, results, stop)
        if request.execute:
            execute(
                {task.task_id: task for task in tasks}, asked, results, style, choose_runner(),
                stop=stop, on_note=write_stderr, on_progress=_told(request, "executed"),
            )  # fmt: skip
        slices = {"split": {task.task_id: task.split or "all" for task in tasks}}
        _finish(request, results, asked, slices, judged=request.execute)


def _infilling(request: EvaluationRequest, recipe: Recipe, tokenizer: Any, stop: StopRequest) -> None:
    sampling = request.sampling
    found, longer = make_gaps(
        _rows(request), tokenizer, recipe.data, seed=sampling.seed, max_tokens=sampling.max_tokens
    )
    gaps: dict[str, Gap] = {gap.task_id: gap for gap in found}
    if longer:
        write_stderr(f"{longer} gaps are longer than {sampling.max_tokens} tokens and are left out (--max-tokens)")
    asked = [
        Request(task_id=gap.task_id, sample=sample, question=gap.question)
        for gap in gaps.values()
        for sample in range(request.samples_per_task)
    ]
    with open_results(request.to, _settings(request, recipe, {"max_length": recipe.data.max_length})) as results:
        _generate(request, recipe, tokenizer, asked, results, stop)
        judge_gaps(gaps, asked, results)
        slices = {
            "all": dict.fromkeys(gaps, "all"),
            "language": {name: gap.language for name, gap in gaps.items()},
            "repository": {name: gap.repository for name, gap in gaps.items()},
            "kind": {name: gap.kind for name, gap in gaps.items()},
        }
        _finish(request, results, asked, slices, judged=True, left_out=longer)


def _held_out(request: EvaluationRequest, recipe: Recipe, tokenizer: Any, stop: StopRequest) -> None:
    rows = _rows(request)
    made = held_out_samples(rows, tokenizer, recipe, seed=request.sampling.seed)
    current = _adapter_name(request.current)
    with open_results(request.to, _settings(request, recipe, {"current": current})) as results:
        judged = measure(
            recipe, made.samples, adapter=request.adapter, current=request.current, stop=stop,
            on_progress=_told(request, "evaluation") or (lambda _done, _total: None),
        )  # fmt: skip
        write_evaluation(results.evaluation, judged.as_records({row.file_id: row for row in rows}))
        tokens = sum(sample.supervised for sample in made.samples)
        results.write_summary(
            {
                **_about(request, results),
                "rows": len(rows),
                "samples": len(made.samples),
                "supervised_tokens": tokens,
                "models": totals(judged),
            }
        )


def _generate(
    request: EvaluationRequest,
    recipe: Recipe,
    tokenizer: Any,
    asked: Sequence[Request],
    results: Results,
    stop: StopRequest,
) -> None:
    def engine() -> Engine:
        model = Model(
            recipe=recipe,
            adapter=request.adapter,
            url=request.url,
            served_name=request.served_name,
            api_key=os.environ.get("VLLM_API_KEY") or None,
            batch_size=request.batch_size,
        )
        return ENGINES[request.engine](model, tokenizer, write_stderr)

    generate(engine, asked, request.sampling, results, stop=stop, on_note=write_stderr,
             on_progress=_told(request, "answers"))  # fmt: skip


def _finish(
    request: EvaluationRequest,
    results: Results,
    asked: Sequence[Request],
    slices: Mapping[str, Mapping[str, str]],
    *,
    judged: bool,
    **facts: Any,
) -> None:
    summary = {**_about(request, results), **summarize(results, asked, slices, judged=judged), **facts}
    if request.against is not None:
        summary["against"] = against(results, asked, Results(request.against))
    results.write_summary(summary)


def _about(request: EvaluationRequest, results: Results) -> dict[str, Any]:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})"
    return {"format": 1, "suite": request.suite, "settings": read_json(results.settings), "device": device}


def _settings(request: EvaluationRequest, recipe: Recipe, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What decides an answer. The number of tasks and samples does not: more of them may follow later."""
    base = recipe.base
    return {
        "suite": request.suite,
        **facts,
        "adapter": _adapter_name(request.adapter),
        "base": {"model": base.model, "revision": base.revision, "quantization": base.quantization},
        "compute_dtype": base.compute_dtype,
        "engine": request.engine,
        "served_name": request.served_name if request.engine == "openai" else None,
        **request.sampling.facts(),
    }


def _adapter_name(adapter: Path | None) -> dict[str, str] | None:
    if adapter is None:
        return None
    if not (adapter / WEIGHTS).is_file():
        raise UnusableInput(f"{adapter} is not an adapter folder: it has no {WEIGHTS}")
    return {"folder": adapter.name, "sha256": sha256_file(adapter / WEIGHTS)}


def _chats(request: EvaluationRequest, tokenizer: Any) -> bool:
    if request.style == "chat" and request.engine == "transformers" and not tokenizer.chat_template:
        raise UnusableInput(f"--style chat: {tokenizer.name_or_path} has no chat template. Use --style completion")
    return request.style == "chat" or bool(tokenizer.chat_template)


def _rows(request: EvaluationRequest) -> list[Row]:
    try:
        rows = list(read_rows(request.file))[: request.max_samples]
    except RunDirectoryError as error:
        raise UnusableInput(str(error)) from error
    if not rows:
        raise UnusableInput(f"{request.file} has no held-out row")
    return rows
