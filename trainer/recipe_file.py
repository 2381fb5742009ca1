"""Reads, checks and writes recipes. Keys are strict, and every problem of a file is reported at once. (no torch)"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from trainer.errors import RecipeError
from trainer.recipe import Recipe, Training
from trainer.recipe_cluster import cluster_problems
from trainer.recipe_experiment import experiment_problems


def load_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        RecipeError: the file cannot be read, or has unknown keys or invalid values. Lists all of them.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise RecipeError(str(path), [" ".join(str(error).split())]) from error
    return parse_recipe(data, where=str(path))


def parse_recipe(data: Any, *, where: str) -> Recipe:
    """Convert parsed YAML to a recipe. Raises RecipeError with all problems."""
    problems: list[str] = []
    recipe = _section(Recipe, data, "", problems)
    if isinstance(recipe, Recipe):
        problems += _contradictions(recipe)
    if problems:
        raise RecipeError(where, problems)
    assert isinstance(recipe, Recipe)
    return recipe


def with_overrides(recipe: Recipe, overrides: Mapping[str, Any]) -> Recipe:
    """Replace dotted keys (`training.batch_size`) of a recipe. Values must be parsed.

    Raises:
        RecipeError: an override's value is not allowed.
    """
    data = recipe_dict(recipe)
    for key, value in overrides.items():
        section, _, name = key.rpartition(".")
        (data[section] if section else data)[name] = value
    return parse_recipe(data, where="the recipe with its overrides")


def recipe_dict(recipe: Recipe) -> dict[str, Any]:
    """Convert a recipe to plain values, including defaults."""
    data = asdict(recipe)
    for section in (section for section in data.values() if isinstance(section, dict)):
        section |= {key: list(value) for key, value in section.items() if isinstance(value, tuple)}
    data["data"]["builders"] = dict(recipe.data.builders)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in data.items()}


def dump_recipe(recipe: Recipe) -> str:
    """Convert a recipe to YAML, including defaults, for a run directory."""
    return str(yaml.safe_dump(recipe_dict(recipe), sort_keys=False, allow_unicode=True))


def _section(cls: type, data: Any, prefix: str, problems: list[str]) -> Any:
    """Parse a mapping to a dataclass. Returns None if a required value is missing or invalid."""
    if not isinstance(data, Mapping):
        problems.append(f"{prefix.rstrip('.') or 'the recipe'}: expected a mapping, not {data!r}")
        return None
    hints = get_type_hints(cls)
    known = {item.name: item for item in fields(cls)}
    for key in data:
        if key not in known:
            problems.append(f"{prefix}{key}: unknown key. Known keys: {', '.join(known)}")
    before = len(problems)
    values: dict[str, Any] = {}
    for name, item in known.items():
        if name not in data:
            if item.default is MISSING and item.default_factory is MISSING:
                problems.append(f"{prefix}{name}: required, but missing")
            continue
        hint = hints[name]
        if is_dataclass(hint):
            assert isinstance(hint, type)
            values[name] = _section(hint, data[name], f"{prefix}{name}.", problems)
        elif (of := next(iter(get_args(hint)), None)) and is_dataclass(of):
            assert isinstance(of, type)
            values[name] = _sections(of, data[name], f"{prefix}{name}", problems)
        else:
            values[name] = _value(hint, data[name], item.metadata, f"{prefix}{name}", problems)
    return cls(**values) if len(problems) == before else None


def _sections(cls: type, data: Any, key: str, problems: list[str]) -> tuple[Any, ...]:
    """Parse a list of mappings to dataclasses."""
    if not isinstance(data, list | tuple):
        problems.append(f"{key}: expected a list, not {data!r}")
        return ()
    return tuple(_section(cls, item, f"{key}[{place}].", problems) for place, item in enumerate(data))


def _value(hint: Any, value: Any, limits: Mapping[str, Any], key: str, problems: list[str]) -> Any:
    """Check one value against its type and limits."""
    allowed = get_args(hint)
    if value is None and type(None) in allowed:
        return None
    if (word := limits.get("word")) is not None:
        if value == word:
            return value
        hint, allowed = allowed[0], ()
    if type(None) in allowed:
        hint = next(option for option in allowed if option is not type(None))
    match get_origin(hint) or hint:
        case t if t is bool:
            good = isinstance(value, bool)
            expected = "true or false"
        case t if t is int:
            good = isinstance(value, int) and not isinstance(value, bool)
            expected = "a whole number" if word is None else f"a whole number or {word}"
        case t if t is float:
            if isinstance(value, str):  # YAML 1.1 reads 2e-5 as a string
                value = _float_or(value)
            good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            expected = "a number"
        case t if t is str:
            good = isinstance(value, str) and bool(value.strip())
            expected = "text"
        case t if t is tuple and allowed[0] is int:
            good = isinstance(value, list | tuple) and bool(value) and all(type(v) is int for v in value)
            expected = "a list of whole numbers"
            value = tuple(value) if good else value
        case t if t is tuple:
            good = (
                isinstance(value, list | tuple)
                and bool(value or limits.get("may_be_empty"))
                and all(isinstance(v, str) and v.strip() for v in value)
            )
            expected = "a list of names"
            value = tuple(value) if good else value
        case _:
            good = (
                isinstance(value, Mapping)
                and all(
                    isinstance(k, str) and isinstance(v, int | float) and not isinstance(v, bool) and v > 0
                    for k, v in value.items()
                )
                and bool(value)
            )
            expected = "names with weights above 0"
    if not good:
        problems.append(f"{key}: expected {expected}, not {value!r}")
        return value
    problems.extend(_outside(value, limits, key))
    return float(value) if hint is float else value


def _float_or(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def _outside(value: Any, limits: Mapping[str, Any], key: str) -> Iterator[str]:
    if choices := limits.get("choices"):
        if value not in choices:
            yield f"{key}: {value!r} is not one of {', '.join(choices)}"
        return
    low, high = limits.get("low"), limits.get("high")
    if low is not None and value < low:
        yield f"{key}: {value} is below the minimum, {low}"
    if high is not None and value > high:
        yield f"{key}: {value} is above the maximum, {high}"


def _contradictions(recipe: Recipe) -> Iterator[str]:
    """Yield contradictions between values."""
    data = recipe.data
    if data.context_fraction_low > data.context_fraction_high:
        yield (
            f"data.context_fraction_low: {data.context_fraction_low} is greater than "
            f"data.context_fraction_high, {data.context_fraction_high}"
        )
    window = data.window_tokens or data.max_length
    if window > data.max_length:
        yield f"data.window_tokens: {window} is greater than data.max_length, {data.max_length}"
    if data.window_overlap > window // 2:
        yield f"data.window_overlap: {data.window_overlap} is more than half of a window, {window // 2}"
    if data.metadata_off_last_fraction and not data.metadata:
        yield "data.metadata_off_last_fraction: nothing to leave out, because data.metadata is false"
    yield from _phase_problems(recipe)
    yield from experiment_problems(recipe.experiment)
    if len(set(recipe.lora.targets)) != len(recipe.lora.targets):
        yield f"lora.targets: duplicate name in {', '.join(recipe.lora.targets)}"
    if not all(part.isalnum() for part in recipe.stream.replace("-", "_").split("_") if part) or not recipe.stream:
        yield f"stream: {recipe.stream!r} is a file name. Use only letters, digits, - and _"
    if recipe.stream == "adapters":
        yield "stream: 'adapters' is reserved for the folder of all adapters. Choose another name"
    yield from _contradictions_in_training(recipe.training)
    yield from _contradictions_in_size(recipe)
    if recipe.evaluation.suites and not recipe.gate.examination:
        yield "evaluation.suites: nothing executes them, because gate.examination is false"
    if data.held_out_fraction == 0 and data.min_held_out == 0:
        yield "data.held_out_fraction and data.min_held_out are both 0, so no row would be held out"


def _phase_problems(recipe: Recipe) -> Iterator[str]:
    for what, names in (
        ("name", recipe.phase_names),
        ("file", tuple(phase.file for phase in recipe.phases if phase.file is not None)),
    ):
        if twice := {name for name in names if names.count(name) > 1}:
            yield f"phases: the {what} {', '.join(sorted(twice))} occurs more than once"
    for place, phase in enumerate(recipe.phases):
        if not phase.name.replace("-", "_").isidentifier():
            yield f"phases[{place}].name: {phase.name!r} is part of file names. Use only letters, digits, - and _"


def _contradictions_in_training(training: Training) -> Iterator[str]:
    if training.checkpointing == "none" and training.offload_checkpoints == "always":
        yield "training.offload_checkpoints: no checkpoints to offload, because training.checkpointing is none"
    if training.adapter_dtype == "bfloat16" and training.optimizer != "adamw_8bit":
        yield (
            f"training.adapter_dtype: bfloat16 needs optimizer: adamw_8bit, which rounds stochastically. "
            f"With {training.optimizer}, most small steps would be lost"
        )
    yield from _contradictions_in_rates(training)
    ignored = {"adafactor": ("beta1", "beta2", "epsilon"), "sgd": ("beta2", "epsilon")}.get(training.optimizer, ())
    for name in ignored:
        if getattr(training, name) != getattr(Training(), name):
            yield f"training.{name}: has no effect with optimizer: {training.optimizer}. Remove it"


def _contradictions_in_rates(training: Training) -> Iterator[str]:
    low, high, schedule = training.min_learning_rate, training.learning_rate, training.schedule
    if low > high:
        yield f"training.min_learning_rate: {low} is greater than training.learning_rate, {high}"
    if low and schedule == "constant":
        yield f"training.min_learning_rate: has no effect with schedule: {schedule}. Remove it"
    if schedule == "range_test" and not 0 < low < high:
        yield (
            f"training.min_learning_rate: {low}. The schedule range_test starts from it, so it must be above 0 and "
            f"below training.learning_rate, {high}"
        )
    if training.restarts != 1 and schedule != "cosine_with_restarts":
        yield f"training.restarts: has no effect with schedule: {schedule}. Remove it, or use cosine_with_restarts"


def _contradictions_in_size(recipe: Recipe) -> Iterator[str]:
    corpus, distributed = recipe.corpus, recipe.distributed
    if corpus.tokens is not None and corpus.samples is None:
        yield "corpus.tokens: has no effect without corpus.samples"
    elif corpus.tokens is not None and corpus.samples is not None and corpus.tokens < corpus.samples:
        yield f"corpus.tokens: {corpus.tokens} is less than corpus.samples, {corpus.samples}"
    yield from cluster_problems(distributed.launcher, distributed.processes, distributed.strategy, distributed)
    alone = distributed.processes == "auto" and distributed.launcher == "process"
    if distributed.strategy in ("fsdp2", "zero2", "zero3"):
        if distributed.processes == 1:
            yield f"distributed.strategy: {distributed.strategy} shares nothing, because distributed.processes is 1"
        elif alone:
            yield (
                f"distributed.strategy: {distributed.strategy} shares nothing, because one process trains with "
                "distributed.launcher: process. Use torchrun"
            )
    if distributed.sequence > 1 and alone:
        yield (
            f"distributed.sequence: {distributed.sequence} processes cannot share packs, because one process trains "
            "with distributed.launcher: process. Use torchrun"
        )
    if isinstance(distributed.processes, int) and distributed.processes % distributed.sequence:
        yield (
            f"distributed.sequence: {distributed.sequence} does not divide distributed.processes, "
            f"{distributed.processes}. So many processes share each pack: use a divisor, or other processes"
        )
    if distributed.strategy in ("fsdp2", "zero2", "zero3") and recipe.training.optimizer == "adafactor":
        yield (
            f"training.optimizer: adafactor keeps sums over rows and columns, which {distributed.strategy} divides. "
            "Use adamw_8bit"
        )
    if distributed.strategy in ("zero2", "zero3") and recipe.training.adapter_dtype == "bfloat16":
        yield (
            f"training.adapter_dtype: bfloat16 has no effect with {distributed.strategy}, because DeepSpeed keeps "
            "a float32 copy. Use float32, or fsdp2"
        )
