"""Runs all stages of one run, from its directory to its report."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from accelerate import Accelerator
from transformers import set_seed
from transformers.utils.logging import disable_progress_bar

from trainer.adapters.export import export_adapter
from trainer.check import Checked, check_run
from trainer.data.batches import Windows
from trainer.data.encoder import TokenSample, pad_id
from trainer.data.tokenize import TokenRows
from trainer.device_readings import DeviceReadings, device_readings
from trainer.errors import StepFailed
from trainer.evaluate.held_out import HeldOut
from trainer.evaluate.judged import Judged
from trainer.events import Events
from trainer.fit.checkpoint import Checkpoint, find_checkpoint
from trainer.fit.context import FitContext
from trainer.fit.judging import judge
from trainer.fit.loop import Fit
from trainer.fit.progress import Progress
from trainer.fit.strategies import divide
from trainer.fit.together import Together
from trainer.fit.trainable import make_trainable
from trainer.model.base import resolve
from trainer.model.load import compute_dtype
from trainer.model.loading import loading_told
from trainer.model.lora import adapter_weights, trainable_parameters
from trainer.model.memory import cards_in_use
from trainer.model.mixture import check_router
from trainer.model.processes import join_processes
from trainer.model.quantized import Emit, load_kept
from trainer.model.sequence import check_sequence, share_packs
from trainer.outcomes import Inputs, row_outcomes
from trainer.plan.choose import Plan
from trainer.plan.device import fitted
from trainer.plan.sharding import training_strategy
from trainer.reading import reading
from trainer.recipe import Recipe, step_samples
from trainer.records import read_rows, write_evaluation, write_outcomes
from trainer.report import dataset_stats, make_report, versions
from trainer.run_dir import RunDirectory, read_json, write_json
from trainer.stop import StopRequest
from trainer.tracking import is_first_process, tracked, write_predictions
from trainer.world_size import world_size


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """The result of the model stage."""

    accelerator: Accelerator
    model: Any
    optimizer: Any
    together: Together
    recipe: Recipe
    """The run's recipe with all memory settings resolved."""
    plan: Plan | None
    """The plan used on a GPU."""


def train(directory: RunDirectory, events: Events, stop: StopRequest) -> None:
    """Train a run, from its inputs to its report. The caller holds the lock.

    Raises:
        UnusableInput, OutOfMemory, Diverged, Stopped
    """
    began = time.monotonic()
    disable_progress_bar()
    resume_from = find_checkpoint(directory.checkpoints, events)
    _emit_started(directory, events, resume_from)
    with device_readings(events, cards_in_use) as readings:
        _train(directory, events, stop, readings, resume_from)
    events.emit("finished", seconds=round(time.monotonic() - began, 3))


def _train(
    directory: RunDirectory, events: Events, stop: StopRequest, readings: DeviceReadings, resume_from: Checkpoint | None
) -> None:
    with events.stage("check"):
        checked = check_run(directory)
        resolve(checked.recipe.base)
        check_router(checked.recipe)
        check_sequence(checked.recipe)
        stop.check()
    with reading(directory, checked, events) as rows:
        loaded = None
        if rows.measured():
            with events.stage("model"), loading_told(events.progress):
                loaded = load_model(checked, events.emit)
        tokenizer, inputs = rows.inputs()
    if is_first_process():
        write_json(directory.dataset_stats, dataset_stats(inputs))
    stop.check()
    windows = make_windows(inputs.training_samples, checked.recipe, seed=checked.seed)
    if loaded is None:
        write_unmeasured(directory, checked, inputs, windows, events)
        return
    facts = _plan_facts(inputs, windows, loaded)
    events.emit("plan", **facts)
    with tracked(directory, checked, loaded.recipe, events, resume_from, facts) as trackers:
        context = FitContext(
            recipe=loaded.recipe,
            accelerator=loaded.accelerator,
            model=loaded.model,
            optimizer=loaded.optimizer,
            together=loaded.together,
            windows=windows,
            held_out=_held_out(inputs.parts.stopping, loaded, stop, events),
            pad=pad_id(tokenizer),
            checkpoints=directory.checkpoints,
            events=events,
            trackers=trackers,
            readings=readings,
            stop=stop,
        )
        fit_and_export(directory, checked, context, inputs, tokenizer, resume_from)


def fit_and_export(
    directory: RunDirectory,
    checked: Checked,
    context: FitContext,
    inputs: Inputs,
    tokenizer: Any,
    resume_from: Checkpoint | None,
) -> None:
    """Train, judge, and write the results. Every process takes part in the first two."""
    events, main = context.events, context.accelerator.is_main_process
    if main and resume_from is None and context.trackers.has_table and not context.together.sharded:
        write_predictions(context, inputs, tokenizer, weights=0, now=0)
    with naming_suspects(directory):
        with events.stage("fit"):
            progress = Fit(context, resume_from).run()
        with events.stage("judge"):
            judged = judge(context, inputs, checked, progress)
    weights = adapter_weights(context.adapted)
    if not main:
        return
    with events.stage("export"):
        exporting = time.monotonic()
        if not context.together.sharded:  # rank 0 alone cannot use a model that is divided
            write_predictions(context, inputs, tokenizer, weights=_result_step(context, progress), now=progress.step)
        with context.stop.deferred():
            write_results(directory, checked, context, inputs, tokenizer, progress, judged, weights, began=exporting)


@contextmanager
def naming_suspects(directory: RunDirectory) -> Iterator[None]:
    """Write the rows that made the fit fail. Removes the suspects of an earlier start."""
    directory.suspects.unlink(missing_ok=True)
    try:
        yield
    except StepFailed as failed:
        if failed.suspects is not None:
            write_json(directory.suspects, asdict(failed.suspects))
        raise


def make_windows(samples: Sequence[TokenSample], recipe: Recipe, *, seed: int) -> Windows:
    """Assign the samples to steps."""
    return Windows(
        samples,
        size=step_samples(recipe),
        num_epochs=recipe.training.num_epochs,
        seed=seed,
        max_steps=recipe.training.max_steps,
        simple_first=recipe.training.order == "simple_first",
        bare_fraction=recipe.data.metadata_off_last_fraction,
    )


def load_model(checked: Checked, emit: Emit = lambda _event, /, **_fields: None) -> Loaded:
    """Load base, adapter and optimizer, wrapped for all processes."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high" if checked.recipe.training.tf32 else "highest")
    bf16 = compute_dtype(checked.recipe.base, device) == torch.bfloat16
    join_processes(device)
    accelerator = Accelerator(mixed_precision="bf16" if bf16 else "no", cpu=device.type == "cpu")
    recipe, plan = fitted(checked.recipe, accelerator.device)
    base = load_kept(recipe.base, accelerator.device, emit)
    shared = share_packs(recipe.distributed.shared_by(accelerator.num_processes))
    loss_model, optimizer = make_trainable(
        base, recipe, accelerator.device, parent=checked.parent, seed=checked.seed, run_id=checked.run_id, shared=shared
    )
    strategy, draws = training_strategy(recipe), (checked.seed, checked.run_id)
    divided = divide(strategy, loss_model, optimizer, accelerator, recipe.training, draws)
    if accelerator.num_processes > 1:
        asked, processes = recipe.distributed.strategy, accelerator.num_processes
        emit("strategy", strategy=strategy, asked=asked, processes=processes, sequence=shared.size)
    set_seed(checked.seed + accelerator.process_index)
    return Loaded(
        accelerator=accelerator,
        model=divided.model,
        optimizer=divided.optimizer,
        together=divided.together,
        recipe=recipe,
        plan=plan,
    )


def write_results(
    directory: RunDirectory,
    checked: Checked,
    context: FitContext,
    inputs: Inputs,
    tokenizer: Any,
    progress: Progress,
    judged: Judged,
    weights: dict[str, torch.Tensor],
    *,
    began: float,
) -> None:
    """Write the adapter, the evaluation, the outcomes, and finally the report."""
    result_step = _result_step(context, progress)
    steps = {"total": len(context.windows), "done": progress.step, "best": progress.best_step, "result": result_step}
    facts = {
        "run_id": checked.run_id,
        "seed": checked.seed,
        "parent_version": checked.parent_version,
        "steps": steps,
        "versions": versions(),
    }
    adapter_sha256 = export_adapter(
        directory.adapter, context.adapted, tokenizer, checked.recipe, facts=facts, weights=weights
    )
    rows = {row.file_id: row for row in read_rows(directory.held_out)}
    write_evaluation(directory.evaluation, judged.as_records(rows))
    outcomes = row_outcomes(inputs, context.windows, result_step=result_step)
    write_outcomes(directory.rows_outcome, outcomes)
    context.readings.read_now()
    report = make_report(
        checked,
        inputs,
        progress,
        outcomes,
        judged=judged,
        steps=steps,
        adapter_sha256=adapter_sha256,
        seconds={**context.events.seconds, "export": round(time.monotonic() - began, 3)},
        device=device_name(),
        energy=context.readings.energy,
    )
    write_json(directory.report, report)


def write_unmeasured(
    directory: RunDirectory, checked: Checked, inputs: Inputs, windows: Windows, events: Events
) -> None:
    """Report the rows without training, because no held-out row gives a sample to judge by.

    The held-out rows are rejected with their reasons. The next claim holds out others.
    """
    outcomes = row_outcomes(inputs, windows, result_step=0)
    write_outcomes(directory.rows_outcome, outcomes)
    write_json(
        directory.report,
        make_report(checked, inputs, Progress(), outcomes, seconds=events.seconds, device=device_name()),
    )
    events.emit("unmeasured", rows=len(inputs.held_out.file_ids), reasons=_reasons(inputs.held_out))


def device_name() -> str:
    """Name of the device."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def _emit_started(directory: RunDirectory, events: Events, resume_from: Checkpoint | None) -> None:
    try:
        run_id = read_json(directory.manifest)["run_id"]
    except (OSError, ValueError, KeyError, TypeError):  # the following check reports the problem
        run_id = None
    events.emit(
        "started",
        pid=os.getpid(),
        run_id=run_id,
        device=device_name(),
        world_size=world_size(),
        resumed_from_step=resume_from.progress.step if resume_from else None,
    )


def _plan_facts(inputs: Inputs, windows: Windows, loaded: Loaded) -> dict[str, Any]:
    return {
        "steps_total": len(windows),
        "samples": windows.num_samples,
        "train_tokens": sum(sample.tokens for sample in inputs.training_samples),
        "held_out_samples": len(inputs.parts.samples),
        "held_out_tokens": sum(sample.tokens for sample in inputs.parts.samples),
        "trainable_parameters": trainable_parameters(loaded.model),
        "checkpointing": loaded.recipe.training.checkpointing,
        "offload_checkpoints": loaded.recipe.training.offload_checkpoints,
        "micro_batch_tokens": loaded.recipe.training.batch_size * loaded.recipe.data.max_length,
        "predicted_gpu_bytes": loaded.plan.allocated_bytes if loaded.plan else None,
    }


def _held_out(samples: Sequence[TokenSample], loaded: Loaded, stop: StopRequest, events: Events) -> HeldOut:
    return HeldOut(
        loaded.accelerator,
        loaded.model,
        samples,
        budget=loaded.recipe.evaluation.batch_size * loaded.recipe.data.max_length,
        stop=stop,
        on_progress=lambda done, total: events.progress("evaluation", done, total),
    )


def _reasons(rows: TokenRows) -> str:
    counts = Counter(rows.rejected.values())
    return ", ".join(f"{reason}: {times}" for reason, times in counts.items()) or "there are none"


def _result_step(context: FitContext, progress: Progress) -> int:
    return progress.result_step(load_best=context.recipe.training.load_best)
