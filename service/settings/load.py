"""Loads the environment into one frozen Settings. Reports all invalid variables at once.

Order: flags > environment > .env > recipe > defaults. An empty value or a `your_…_here` counts as unset.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from db.source import Eligibility, Source
from service.errors import SettingsError
from service.logs import event as log
from service.settings.environment import is_set, is_utf8, read_environment
from service.settings.parsers import Price
from service.settings.spelling import unknown_in_environment, unknown_in_file
from service.settings.variables import FOR_THE_TRAINER, OVER_THE_RECIPE, RECIPE_MAY_SET, VARIABLES
from trainer.errors import RecipeError
from trainer.recipe import Recipe
from trainer.recipe_file import load_recipe, with_overrides


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The service's settings."""

    recipe: Recipe
    """The recipe with the environment's overrides."""
    database_url: str | None
    """None: use the embedded Postgres below CODELUPE_HOME."""
    source: Source
    eligibility: Eligibility
    min_new_files: int
    max_dataset_size: int
    check_interval_seconds: float
    sweep_interval_seconds: float
    max_attempts: int
    db_pool_min_conn: int
    db_pool_max_conn: int
    metrics_host: str
    metrics_port: int
    public_url: str | None
    """The service's public address, if it differs from the listening address."""
    log_format: str
    """`text` or `json`."""
    home: Path
    token: str | None
    """None: every POST is refused."""
    keep_adapters: int
    vllm_url: str | None
    """The vLLM server that serves the current adapter, if any."""
    vllm_api_key: str | None
    sandbox_socket: str | None
    """Socket of the container that executes model-written code. None: this machine's own sandbox does."""
    trainer_secrets: Mapping[str, str]
    """Keys that are passed to the trainer: trackers and Hub."""
    electricity_price: Price | None = None
    """None: the energy of a run is shown without its cost."""
    alert_urls: tuple[str, ...] = field(default=(), repr=False)
    """Where alerts are sent: addresses of apprise, which contain secrets."""
    alert_on: tuple[str, ...] = ()
    """Kinds of alerts that are sent."""
    keep_candidates: bool = False
    """Whether a run keeps its candidate and its checkpoints after the verdict. `codelupe train` does."""


def load_settings(
    recipe_path: Path,
    *,
    environment: Mapping[str, str] = os.environ,
    env_file: Path | None = Path(".env"),
    flags: Mapping[str, str] | None = None,
) -> Settings:
    """Read the recipe and every variable.

    Raises:
        SettingsError: the recipe or a variable is invalid. Lists all problems.
    """
    problems: list[str] = []
    recipe: Recipe | None = None
    try:
        recipe = load_recipe(recipe_path)
    except RecipeError as error:
        problems += [f"{recipe_path}: {problem}" for problem in error.problems]
    _check_names(environment, env_file, problems)
    given = {
        **read_environment(environment, env_file),
        **{k: v for k, v in (flags or {}).items() if is_set(v)},
    }
    values = _values(given, recipe, problems)
    if recipe is not None:
        recipe = _override(recipe, given, values, problems)
    source = _source(values, problems)
    url = _database_url(given, values, problems)
    alert_urls = _alert_urls(values, problems)
    _contradictions(values, problems)
    if problems or recipe is None or source is None:
        raise SettingsError(problems)
    return Settings(
        recipe=recipe,
        database_url=url,
        source=replace(source, with_phase=bool(recipe.phases)),
        eligibility=Eligibility(
            quality_threshold=values["QUALITY_THRESHOLD"],
            min_chars=values["MIN_CONTENT_CHARS"],
            max_chars=values["MAX_CONTENT_CHARS"],
            phases=recipe.phase_names,
        ),
        min_new_files=values["MIN_NEW_FILES"],
        max_dataset_size=values["MAX_DATASET_SIZE"],
        check_interval_seconds=values["CHECK_INTERVAL"],
        sweep_interval_seconds=values["SWEEP_INTERVAL"],
        max_attempts=values["MAX_ATTEMPTS"],
        db_pool_min_conn=values["DB_POOL_MIN_CONN"],
        db_pool_max_conn=values["DB_POOL_MAX_CONN"],
        metrics_host=values["METRICS_HOST"],
        metrics_port=values["METRICS_PORT"],
        public_url=values["PUBLIC_URL"],
        log_format=values["LOG_FORMAT"],
        home=values["CODELUPE_HOME"],
        token=values["CODELUPE_TOKEN"],
        keep_adapters=values["KEEP_ADAPTERS"],
        vllm_url=values["VLLM_URL"],
        vllm_api_key=values["VLLM_API_KEY"],
        sandbox_socket=values["SANDBOX_SOCKET"],
        electricity_price=values["ELECTRICITY_PRICE"],
        trainer_secrets={name: given[name] for name in FOR_THE_TRAINER if name in given},
        alert_urls=alert_urls,
        alert_on=values["ALERT_ON"],
    )


def _check_names(environment: Mapping[str, str], env_file: Path | None, problems: list[str]) -> None:
    """Report misspelled names: a problem in the file, a warning in the environment, which others use too."""
    wrong, unknown = unknown_in_file(read_environment({}, env_file))
    problems += wrong
    given = [name for name in environment if is_set(environment[name])]
    for warning in [*(f"{env_file}: {text}" for text in unknown), *unknown_in_environment(given)]:
        log(warning, level=logging.WARNING)


def _values(given: Mapping[str, str], recipe: Recipe | None, problems: list[str]) -> dict[str, Any]:
    """Return each variable's value: given, else from the recipe, else the default."""
    values: dict[str, Any] = {}
    for name, variable in VARIABLES.items():
        values[name] = variable.default
        if recipe is not None and name in RECIPE_MAY_SET:
            from_recipe = getattr(recipe.service, name.lower())
            values[name] = variable.default if from_recipe is None else from_recipe
        if name not in given:
            continue
        try:
            if not is_utf8(given[name]):
                raise ValueError("UTF-8 text")
            values[name] = variable.parse(given[name])
        except ValueError as error:
            shown = "its value" if variable.secret else repr(given[name])
            problems.append(f"{name}: {shown} is not allowed. Use {error}")
    return values


def _override(
    recipe: Recipe, given: Mapping[str, str], values: Mapping[str, Any], problems: list[str]
) -> Recipe | None:
    """Return the recipe with the variables that override it."""
    overrides = {key: values[name] for name, key in OVER_THE_RECIPE.items() if name in given}
    if "base.attention" in overrides:
        overrides["base.attention"] = "flash_attention_2" if overrides["base.attention"] else "sdpa"
    if "base.model" in overrides:
        overrides["base.revision"] = None
    try:
        return with_overrides(recipe, overrides)
    except RecipeError as error:
        names = {key: name for name, key in OVER_THE_RECIPE.items()}
        for problem in error.problems:
            key = problem.partition(":")[0]
            if not any(known.startswith(names.get(key, "?") + ":") for known in problems):
                problems.append(f"{names.get(key, key)}:{problem.partition(':')[2]}")
        return recipe


def _source(values: Mapping[str, Any], problems: list[str]) -> Source | None:
    try:
        return Source.parse(values["SOURCE_TABLE"], values["SOURCE_COLUMNS"])
    except ValueError as error:
        problems.append(f"SOURCE_TABLE, SOURCE_COLUMNS: {error}")
        return None


def _database_url(given: Mapping[str, str], values: Mapping[str, Any], problems: list[str]) -> str | None:
    """Return DATABASE_URL, else a URL from the POSTGRES_ variables, else None for the embedded database."""
    if values["DATABASE_URL"] or "POSTGRES_HOST" not in given:
        return values["DATABASE_URL"] or None
    password = values["POSTGRES_PASSWORD"]
    if values["POSTGRES_PASSWORD_FILE"]:
        password = _secret("POSTGRES_PASSWORD_FILE", values, problems)
    login = quote(values["POSTGRES_USER"], safe="") + (f":{quote(password, safe='')}" if password else "")
    host = quote(values["POSTGRES_HOST"], safe="[]:.")
    return f"postgresql://{login}@{host}:{values['POSTGRES_PORT']}/{quote(values['POSTGRES_DB'], safe='')}"


def _alert_urls(values: Mapping[str, Any], problems: list[str]) -> tuple[str, ...]:
    """Return ALERT_URLS, or what its file has. The service checks the addresses when it opens them."""
    urls: tuple[str, ...] = values["ALERT_URLS"]
    if values["ALERT_URLS_FILE"] and (text := _secret("ALERT_URLS_FILE", values, problems)):
        try:
            urls = VARIABLES["ALERT_URLS"].parse(text)
        except ValueError as error:
            problems.append(f"ALERT_URLS_FILE: its text is not allowed. Use {error}")
    return urls


def _secret(name: str, values: Mapping[str, Any], problems: list[str]) -> str | None:
    """Return the text of the file that the variable names."""
    path = values[name]
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{name}: {path!r} cannot be read ({error})")
        return None
    if not text:
        problems.append(f"{name}: {path!r} is empty")
    return text


def _contradictions(values: Mapping[str, Any], problems: list[str]) -> None:
    """Report values that contradict each other."""
    for low, high in (
        ("MIN_CONTENT_CHARS", "MAX_CONTENT_CHARS"),
        ("DB_POOL_MIN_CONN", "DB_POOL_MAX_CONN"),
        ("MIN_NEW_FILES", "MAX_DATASET_SIZE"),
    ):
        if values[low] > values[high]:
            problems.append(f"{low}: {values[low]} is greater than {high}, which is {values[high]}")
    if values["WANDB_MODE"] == "online" and not values["WANDB_API_KEY"]:
        problems.append("WANDB_MODE: online needs WANDB_API_KEY. Without a key, use offline, or leave WANDB_MODE out")
