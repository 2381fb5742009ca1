"""Rejection sampling: train on the answers that pass, in a run directory for each round.

    rounds/0001/answers/        drawn with the adapter before the round
                run/            run directory: passing answers are its rows; its parent is the adapter before
                report.json     last

It is what STaR (Zelikman et al. 2022) and expert iteration do, without hints.
"""

from __future__ import annotations

import gc
import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from trainer.conversations import MESSAGES, Turn, as_messages, readable
from trainer.evaluate.engines import Engine, Model
from trainer.evaluate.prompts import Question
from trainer.evaluate.suites import Task
from trainer.evaluate.transformers_engine import TransformersEngine
from trainer.events import Events
from trainer.recipe import Recipe
from trainer.recipe_file import dump_recipe
from trainer.records import Row, json_line
from trainer.reward.answers import Answer, kept_answers
from trainer.reward.job import Job, solution_text
from trainer.run_dir import (
    MANIFEST,
    RunDirectory,
    held_lock,
    new_folder,
    read_json,
    sha256_file,
    write_manifest,
    write_text,
)
from trainer.stop import write_stderr
from trainer.train import train


class Rejection:
    """Rejection sampling."""

    def __init__(self, job: Job, done: int) -> None:
        self.job = job
        finished = [self._run(number) for number in range(1, done + 1)]
        adapters = [run.adapter for run in finished if run.report.is_file()]
        self.adapter = adapters[-1] if adapters else job.request.adapter

    def answers(self, number: int) -> list[Answer]:
        """Answer all tasks. The model is gone from memory afterwards."""
        job = self.job

        def engine() -> Engine:
            batch = job.recipe.reward.batch_size
            model = Model(recipe=job.recipe, adapter=self.adapter, batch_size=batch)
            return TransformersEngine.load(model, job.tokenizer, write_stderr)

        found = job.answers(number, engine, adapter=self.adapter)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return found

    def learn(self, number: int, answers: Sequence[Answer]) -> dict[str, Any]:
        """Train the ordinary trainer on the answers that pass. Without any, the adapter stays as it is."""
        job, run = self.job, self._run(number)
        kept = kept_answers(answers, job.recipe.reward.most_answers_per_task)
        facts = {"kept": len(kept), "tasks_kept": len({answer.task.task_id for answer in kept})}
        if not kept:
            write_stderr(f"round {number}: no answer passed, so there is nothing to train on")
            return {**facts, "steps": 0, "loss": None}
        if not run.manifest.is_file():
            self._make(run, number, kept)
        with held_lock(run.lock, wait_seconds=0):
            if not run.report.is_file():
                train(run, Events(run.events), job.stop)
        self.adapter = run.adapter
        report = read_json(run.report)
        return {**facts, "steps": report["steps"]["result"], "loss": report["evaluation"]["candidate"]["loss"]}

    def settle(self, number: int) -> None:
        """Remove the run's checkpoints."""
        shutil.rmtree(self._run(number).checkpoints, ignore_errors=True)

    def finish(self) -> Path | None:
        """Return the last round's adapter."""
        return self.adapter

    def _run(self, number: int) -> RunDirectory:
        return RunDirectory(self.job.round_folder(number) / "run")

    def _make(self, run: RunDirectory, number: int, kept: Sequence[Answer]) -> None:
        """Write the run directory. Its held-out rows are the solutions of the tasks that are never trained on."""
        job = self.job
        asking = job.asking(number, None)
        rows = [
            make_row(place, answer.task, asking.question(answer.task), answer.text, sample=answer.sample)
            for place, answer in enumerate(kept, 1)
        ]
        held_out = [
            make_row(len(rows) + place, task, asking.question(task), solution_text(task, job.style))
            for place, task in enumerate(job.tasks.held_out, 1)
        ]
        recipe = round_recipe(job.recipe, job.style)
        with new_folder(run.root) as temporary:
            folder = RunDirectory(temporary)
            write_text(folder.recipe, dump_recipe(recipe))
            write_text(folder.rows, "".join(json_line(asdict(row)) for row in rows))
            write_text(folder.held_out, "".join(json_line(asdict(row)) for row in held_out))
            if self.adapter is not None:
                folder.parent.symlink_to(os.path.relpath(self.adapter, run.root))
            write_manifest(
                temporary,
                run_id=number,
                stream=recipe.stream,
                seed=recipe.training.seed,
                parent_version=None,
                parent_manifest_sha256=None if self.adapter is None else sha256_file(self.adapter / MANIFEST),
                base={"model": recipe.base.model, "revision": recipe.base.revision},
            )


def round_recipe(recipe: Recipe, style: str) -> Recipe:
    """Return the recipe of a round's run: answers are trained as they are, and the last weights are the result.

    The loss on solutions that people wrote does not choose the weights: the pass rate of the next round judges them.
    """
    reward, training = recipe.reward, recipe.training
    return replace(
        recipe,
        data=replace(
            recipe.data, builders={"chat": 1.0}, turns="chat" if style == "chat" else "plain", rename_fraction=0.0,
            metadata=False, metadata_off_last_fraction=0.0,
            largest_unparsed_share=1.0,
        ),
        training=replace(
            training, load_best=False, order="shuffled",
            learning_rate=training.learning_rate if reward.learning_rate is None else reward.learning_rate,
        ),
        evaluation=replace(recipe.evaluation, interval_fraction=1.0, interval_steps=None, suites=()),
        tracking=replace(recipe.tracking, sample_predictions=0),
        phases=(),
    )  # fmt: skip


def make_row(file_id: int, task: Task, question: Question, answer: str, *, sample: int | None = None) -> Row:
    """Return the row of one answer: a conversation. With data.turns plain, the answer follows its prompt at once."""
    asked = question.messages if question.text is None else (("user", question.text),)
    turns = [*(_turn(role, text) for role, text in asked), Turn(role="assistant", text=answer)]
    content = readable(turns)
    return Row(
        file_id=file_id,
        repository="reward",
        path=f"{task.task_id}/{'solution' if sample is None else sample}.py",
        language="python",
        content=content,
        sha256=hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest(),
        metadata={MESSAGES: as_messages(turns), "task": task.task_id},
    )


def _turn(role: str, text: str) -> Turn:
    return Turn(role="system" if role == "system" else "user", text=text)
