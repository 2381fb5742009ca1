"""The command experiment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from service import logs
from service.cli.console import JsonOption, RecipeOption, out, print_json, settings_for
from service.cli.evaluation import Options, evaluate_one
from service.cli.progress import progress_shown
from service.cli.train import check_ready, folder_for, silent
from service.errors import UsageError
from service.experiment.arms import Trained, check_alike, check_trained_alike, read_arm, train_arm
from service.experiment.overlap import overlap
from service.experiment.plan import Plan, arm_recipe, check_facts, chosen_arms, chosen_stage, held_out_tasks, open_plan
from service.experiment.report import BASE, Measured, write_report
from service.experiment.scores import read_verdicts
from service.experiment.tasks import ALL, SPLITS, check_tests, read_tasks
from service.settings.load import Settings
from service.training.smoke import smoke_settings

TOP_P = 0.95
"""As in Chen et al. 2021."""
SMOKE_TASKS, SMOKE_SAMPLES, SMOKE_TOKENS, SMOKE_LENGTH = 5, 2, 48, 1024
MAX_TOKENS = 512


def experiment(
    stage: Annotated[str, typer.Option(help="Stage of the recipe: how many tasks and epochs.")],
    train: Annotated[
        Path, typer.Option(help="Training tasks: HumanEval's or MBPP's form, or records. JSONL, gzipped or not.")
    ],
    test: Annotated[Path, typer.Option(help="Test tasks in HumanEval's or MBPP's form.")],
    recipe: RecipeOption = None,
    split: Annotated[
        str | None, typer.Option(help=f"MBPP's split to train on: {', '.join(SPLITS)}, {ALL}. Default: train.")
    ] = None,
    arm: Annotated[str | None, typer.Option(help="Only train or resume this arm.")] = None,
    execute: Annotated[
        bool, typer.Option("--execute", help="Run the tests on the answers, in the sandbox. pass@k needs it.")
    ] = False,
    max_samples: Annotated[int | None, typer.Option(min=1, help="Only the first N test tasks.")] = None,
    samples_per_task: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="Answers to each test task. Default: the recipe's.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, max=4096, help="Answers in a batch.")] = 16,
    to: Annotated[
        Path | None, typer.Option(help="Folder. Default: experiments/RECIPE-STAGE below CODELUPE_HOME.")
    ] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="Try it in a minute: a toy base, 5 tasks, 2 answers.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train the arms of an experiment on the same tasks, with and without metadata, and compare them. Resumes."""
    settings = settings_for(recipe)
    logs.set_up(settings.log_format)
    show = silent if as_json else logs.progress_printer(settings.log_format)
    root = folder_for(settings, to or _usual(settings, stage, smoke=smoke), kind="experiments", smoke=smoke)
    plan = _plan(settings, root, stage, train, test, split, smoke=smoke)
    arms, wanted = plan.recipe.experiment.arms, chosen_arms(plan.recipe, arm)
    check_facts(arms, plan.training)
    for one in arms:
        arm_recipe(plan, one)
    options = _options(plan, test, execute, max_samples, samples_per_task, batch_size)
    open_plan(plan, train.name.split(".")[0])
    check_alike(plan, arms)
    show("overlap", plan.overlap.sentence())
    if smoke:
        settings = _smoke(settings, root)
        plan = replace(plan, recipe=settings.recipe)
    else:
        check_ready(settings, root, show)
    for one in wanted:
        with progress_shown(settings.log_format):
            trained = train_arm(settings, plan, one, show=show)
        check_alike(plan, arms)
        losses = " → ".join(f"{score['loss']:.4f}" for score in (trained.before, trained.after) if "loss" in score)
        show("arm", f"{one.name}: loss {losses or 'not measured'}")
    done = [found for one in arms if (found := read_arm(plan, one)) is not None]
    check_trained_alike(done)
    measured = _measure(settings, plan, done, options) if len(done) == len(arms) else None
    record = write_report(plan, done, measured)
    if as_json:
        print_json(record)
    else:
        out.print((plan.root / "experiment.md").read_text(encoding="utf-8"), markup=False)
        out.print(f"results: {plan.root / 'experiment.md'}, {plan.root / 'experiment.json'}", markup=False)


def _usual(settings: Settings, stage: str, *, smoke: bool) -> Path:
    name = f"{settings.recipe.name}-{stage}{'-smoke' if smoke else ''}"
    return Path(settings.home) / "experiments" / name


def _smoke(settings: Settings, root: Path) -> Settings:
    """Return the settings with a toy base, whose samples may be as long as tasks are."""
    longest = min(settings.recipe.data.max_length, SMOKE_LENGTH)
    small = smoke_settings(settings, root)
    data = replace(small.recipe.data, max_length=longest, max_eval_tokens=settings.recipe.data.max_eval_tokens)
    return replace(small, recipe=replace(small.recipe, data=data))


def _plan(
    settings: Settings, root: Path, stage_name: str, train: Path, test: Path, split: str | None, *, smoke: bool
) -> Plan:
    """Read the tasks and compare training and test, before anything is loaded.

    Raises:
        UsageError, PreconditionError: a file cannot be read, or there is no such stage.
    """
    if split not in (None, ALL, *SPLITS):
        raise UsageError(f"--split {split}: MBPP has the splits {', '.join(SPLITS)}, or {ALL}")
    stage = chosen_stage(settings.recipe, stage_name)
    if smoke:
        stage = replace(stage, tasks=min(stage.tasks, SMOKE_TASKS))
    count = stage.tasks + held_out_tasks(settings.recipe, stage)
    training = tuple(read_tasks(train, "--train", split=split, default_split="train")[:count])
    asked = tuple(read_tasks(test, "--test", split=None, default_split="test"))
    check_tests(asked, test)
    return Plan(
        root=root, recipe=settings.recipe, stage=stage, training=training, test=asked, test_file=test.absolute(),
        overlap=overlap(training, asked, test, gram_words=settings.recipe.hygiene.benchmark_gram_words), smoke=smoke,
    )  # fmt: skip


def _options(
    plan: Plan, test: Path, execute: bool, max_samples: int | None, samples_per_task: int | None, batch_size: int
) -> Options:
    """Return how base and arms are evaluated: all in the same way."""
    chosen = plan.recipe.experiment
    samples = samples_per_task or (SMOKE_SAMPLES if plan.smoke else chosen.samples_per_task)
    if chosen.temperature == 0 and samples > 1:
        raise UsageError(f"--samples-per-task {samples}: at temperature 0 all answers are the same. Use 1")
    return Options(
        suite=str(test.absolute()), split=None, max_samples=max_samples or (SMOKE_TASKS if plan.smoke else None),
        samples_per_task=samples, temperature=chosen.temperature, top_p=TOP_P,
        max_tokens=SMOKE_TOKENS if plan.smoke else MAX_TOKENS, seed=plan.recipe.training.seed,
        style="completion" if plan.recipe.data.turns == "plain" else None, engine="transformers", url=None,
        served_name=None, batch_size=batch_size, execute=execute,
    )  # fmt: skip


def _measure(settings: Settings, plan: Plan, arms: Sequence[Trained], options: Options) -> Measured:
    """Evaluate the base and all arms, or go on with it. All have the base that the arms were trained on."""
    pinned = replace(settings, recipe=arms[0].recipe)
    models = {BASE: BASE, **{one.arm.name: str(one.adapter) for one in arms}}
    with progress_shown(settings.log_format):
        for name, adapter in models.items():
            evaluate_one(pinned, options, adapter, to=plan.evaluation(name))
    tasks = [task.task_id for task in plan.test][: options.max_samples]
    judged = models if options.execute else ()
    verdicts = {name: read_verdicts(plan.evaluation(name), tasks, options.samples_per_task) for name in judged}
    return Measured(
        tasks=len(tasks), samples_per_task=options.samples_per_task, temperature=options.temperature,
        top_p=options.top_p, executed=options.execute, verdicts=verdicts,
    )  # fmt: skip
