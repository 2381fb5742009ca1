"""Environment → one frozen Settings. Every bad variable is reported at once.

Order: flags > environment > .env > recipe > defaults. An empty value or a `your_…_here` counts as unset.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
from dotenv import dotenv_values

from db.source import Eligibility, Source
from service.errors import SettingsError
from service.logs import FORMATS
from trainer.errors import RecipeError
from trainer.recipe import Recipe, load_recipe, with_overrides

Parser = Callable[[str], Any]

PROJECT_RECIPES = Path(__file__).resolve().parents[2] / "recipes"
"""The recipes that come with the project."""


# --- how one value is read ------------------------------------------------------------------------------------

LONGEST_CONTENT_CHARS = 20_000_000
"""Looking at a text of so many takes ten seconds or twenty, in which no lease is renewed: of ten times as many, it can
run out."""


def whole(low: int, high: int | None = None) -> Parser:
    """A whole number within limits."""

    def parse(text: str) -> int:
        allowed = f"a whole number of at least {low}" if high is None else f"a whole number from {low} to {high}"
        if not re.fullmatch(r"[+-]?\d{1,18}", text):
            raise ValueError(allowed)
        value = int(text)
        if value < low or (high is not None and value > high):
            raise ValueError(allowed)
        return value

    return parse


def number(low: float, *, above: bool = False) -> Parser:
    """A finite number, at least (or above) `low`."""

    def parse(text: str) -> float:
        allowed = f"a number {'above' if above else 'of at least'} {low:g}" if math.isfinite(low) else "a finite number"
        try:
            value = float(text)
        except ValueError:
            raise ValueError(allowed) from None
        if not math.isfinite(value) or value < low or (above and value == low):
            raise ValueError(allowed)
        return value

    return parse


def boolean(text: str) -> bool:
    """true or false, and their usual spellings."""
    match text.lower():
        case "1" | "true" | "yes" | "on":
            return True
        case "0" | "false" | "no" | "off":
            return False
    raise ValueError("true or false")


def postgres_url(text: str) -> str:
    """A Postgres URL or a key=value connection string."""
    if not re.match(r"postgres(ql)?://", text) and not re.match(r"\s*\w+\s*=", text):
        raise ValueError("postgresql://user:password@host:port/database")
    return text


def web_address(text: str) -> str:
    """An http or https address, without the slash at its end."""
    allowed = "http://host:port or https://host"
    try:
        parts = urlsplit(text)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        httpx.URL(text).host.encode("idna")  # what a connection does with it
    except (ValueError, httpx.InvalidURL):  # a port that is no number, a bracket that is not closed, a host like a..b
        raise ValueError(allowed) from None
    if not good or parts.query or parts.fragment or parts.username is not None or re.search(r"\s", text):
        raise ValueError(allowed)
    return text.rstrip("/")


def key(text: str) -> str:
    """What goes into a header as it is."""
    if not re.fullmatch(r"[!-~]+", text):
        raise ValueError("letters, digits and signs of ASCII, without spaces,")
    return text


def listed(text: str) -> tuple[str, ...]:
    """Names with commas between them."""
    found = tuple(name.strip() for name in text.split(",") if name.strip())
    if not found:
        raise ValueError("a list with commas")
    return found


def one_of(*names: str) -> Parser:
    """One of a few short names."""

    def parse(text: str) -> str:
        if text.lower() not in names:
            raise ValueError(" or ".join(names))
        return text.lower()

    return parse


def server_address(text: str) -> str:
    """The address of a server of an OpenAI-like API, without the API's own path."""
    return web_address(text).removesuffix("/v1")


def folder(text: str) -> Path:
    """A folder, made absolute."""
    return Path(text).expanduser().absolute()


def plain(text: str) -> str:
    """Text as it stands."""
    return text


@dataclass(frozen=True)
class Variable:
    """One environment variable."""

    parse: Parser
    default: Any = None
    secret: bool = False
    """Its value never appears in a message."""


VARIABLES: dict[str, Variable] = {
    "CODELUPE_RECIPE": Variable(plain, "embedded"),
    "DATABASE_URL": Variable(postgres_url, secret=True),
    "POSTGRES_HOST": Variable(plain),
    "POSTGRES_PORT": Variable(whole(1, 65535), 5432),
    "POSTGRES_DB": Variable(plain, "coding_db"),
    "POSTGRES_USER": Variable(plain, "coding_user"),
    "POSTGRES_PASSWORD": Variable(plain, secret=True),
    "POSTGRES_PASSWORD_FILE": Variable(plain),
    "HF_TOKEN": Variable(plain, secret=True),
    "WANDB_API_KEY": Variable(plain, secret=True),
    "WANDB_MODE": Variable(one_of("online", "offline", "disabled", "dryrun")),
    "MIN_NEW_FILES": Variable(whole(1), 1000),
    "MAX_DATASET_SIZE": Variable(whole(1), 100_000),
    "CHECK_INTERVAL": Variable(number(0, above=True), 300.0),
    "SWEEP_INTERVAL": Variable(number(0, above=True), 3600.0),
    "QUALITY_THRESHOLD": Variable(number(-math.inf), 70.0),
    "MIN_CONTENT_CHARS": Variable(whole(1), 50),
    "MAX_CONTENT_CHARS": Variable(whole(1, LONGEST_CONTENT_CHARS), 8000),
    "MAX_ATTEMPTS": Variable(whole(1, 1000), 3),
    "DB_POOL_MIN_CONN": Variable(whole(0, 1000), 1),
    "DB_POOL_MAX_CONN": Variable(whole(2, 1000), 5),
    "METRICS_HOST": Variable(plain, "127.0.0.1"),
    "METRICS_PORT": Variable(whole(0, 65535), 8090),
    "SOURCE_TABLE": Variable(plain, "code_files"),
    "SOURCE_COLUMNS": Variable(plain, ""),
    "CODELUPE_HOME": Variable(folder, Path("var").absolute()),
    "PUBLIC_URL": Variable(web_address),
    "LOG_FORMAT": Variable(one_of(*FORMATS), "text"),
    "CODELUPE_TOKEN": Variable(plain, secret=True),
    "KEEP_ADAPTERS": Variable(whole(1), 10),
    "VLLM_URL": Variable(server_address),
    "VLLM_API_KEY": Variable(key, secret=True),
    "SAMPLE_PREDICTIONS": Variable(whole(0, 1000)),
    "ALLOWED_LICENSES": Variable(listed),
    "BENCHMARK_FILES": Variable(listed),
    "CODELUPE_STREAM": Variable(plain),
    "MODEL": Variable(plain),
    "BATCH_SIZE": Variable(whole(1)),
    "GRADIENT_ACCUMULATION_STEPS": Variable(whole(1)),
    "MAX_LENGTH": Variable(whole(32)),
    "LEARNING_RATE": Variable(number(0, above=True)),
    "USE_FLASH_ATTENTION": Variable(boolean),
    "DATALOADER_NUM_WORKERS": Variable(whole(0, 256)),
}
"""Every variable that the service reads; .env.example explains each."""

OVER_THE_RECIPE = {
    "CODELUPE_STREAM": "stream",
    "MODEL": "base.model",
    "BATCH_SIZE": "training.batch_size",
    "GRADIENT_ACCUMULATION_STEPS": "training.gradient_accumulation_steps",
    "MAX_LENGTH": "data.max_length",
    "LEARNING_RATE": "training.learning_rate",
    "USE_FLASH_ATTENTION": "base.attention",
    "DATALOADER_NUM_WORKERS": "training.dataloader_workers",
    "SAMPLE_PREDICTIONS": "tracking.sample_predictions",
    "ALLOWED_LICENSES": "hygiene.licenses",
    "BENCHMARK_FILES": "hygiene.benchmarks",
}
"""Variables that replace a value of the recipe."""

FOR_THE_TRAINER = ("HF_TOKEN", "WANDB_API_KEY", "WANDB_MODE")
"""Variables that the trainer's process gets as they are."""

RECIPE_MAY_SET = (
    "MIN_NEW_FILES",
    "MAX_DATASET_SIZE",
    "CHECK_INTERVAL",
    "SWEEP_INTERVAL",
    "QUALITY_THRESHOLD",
    "MIN_CONTENT_CHARS",
    "MAX_CONTENT_CHARS",
)
"""Variables whose default a recipe may set in its `service` section."""


# --- all of them ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the service runs with."""

    recipe: Recipe
    """With the environment's overrides in it."""
    database_url: str | None
    """None: the embedded Postgres below CODELUPE_HOME."""
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
    """Where people reach the service, when that is not the address that it listens on."""
    log_format: str
    """text or json."""
    home: Path
    token: str | None
    """Without one, every POST is refused."""
    keep_adapters: int
    vllm_url: str | None
    """The vLLM server that is told which adapter is current; None: there is none."""
    vllm_api_key: str | None
    trainer_secrets: Mapping[str, str]
    """What the trainer's process may know: the trackers' and the Hub's keys."""


def read_environment(environment: Mapping[str, str], env_file: Path | None = None) -> dict[str, str]:
    """The variables that are set, the environment's over the file's."""
    from_file = dotenv_values(env_file, interpolate=False) if env_file and env_file.is_file() else {}
    merged = {**from_file, **{name: environment[name] for name in environment if _is_set(environment[name])}}
    return {name: value.strip() for name, value in merged.items() if value is not None and _is_set(value)}


def _is_set(value: str | None) -> bool:
    return bool(value and value.strip()) and not re.fullmatch(r"your_\w*_here", (value or "").strip())


def chosen_log_format(*, environment: Mapping[str, str] = os.environ, env_file: Path | None = Path(".env")) -> str:
    """LOG_FORMAT alone, before everything else is known to be right; the default where it is not."""
    variable = VARIABLES["LOG_FORMAT"]
    try:
        chosen: str = variable.parse(read_environment(environment, env_file).get("LOG_FORMAT", variable.default))
    except ValueError:  # a problem of the settings, and named as such
        return str(variable.default)
    return chosen


def chosen_recipe(
    flag: Path | None, *, environment: Mapping[str, str] = os.environ, env_file: Path | None = Path(".env")
) -> Path:
    """The recipe's file: the flag's, else CODELUPE_RECIPE's. A name without suffix is one of the project's own."""
    named = flag or Path(
        read_environment(environment, env_file).get("CODELUPE_RECIPE", VARIABLES["CODELUPE_RECIPE"].default)
    )
    return named if named.suffix or named.exists() else PROJECT_RECIPES / f"{named}.yaml"


def load_settings(
    recipe_path: Path,
    *,
    environment: Mapping[str, str] = os.environ,
    env_file: Path | None = Path(".env"),
    flags: Mapping[str, str] | None = None,
) -> Settings:
    """Read the recipe and every variable.

    Raises:
        SettingsError: something cannot be used; lists everything at once, recipe and variables alike.
    """
    problems: list[str] = []
    recipe: Recipe | None = None
    try:
        recipe = load_recipe(recipe_path)
    except RecipeError as error:
        problems += [f"{recipe_path}: {problem}" for problem in error.problems]
    given = {
        **read_environment(environment, env_file),
        **{k: v for k, v in (flags or {}).items() if _is_set(v)},
    }
    values = _values(given, recipe, problems)
    if recipe is not None:
        recipe = _override(recipe, given, values, problems)
    source = _source(values, problems)
    url = _database_url(given, values, problems)
    _contradictions(values, problems)
    if problems or recipe is None or source is None:
        raise SettingsError(problems)
    return Settings(
        recipe=recipe,
        database_url=url,
        source=source,
        eligibility=Eligibility(
            quality_threshold=values["QUALITY_THRESHOLD"],
            min_chars=values["MIN_CONTENT_CHARS"],
            max_chars=values["MAX_CONTENT_CHARS"],
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
        trainer_secrets={name: given[name] for name in FOR_THE_TRAINER if name in given},
    )


def _values(given: Mapping[str, str], recipe: Recipe | None, problems: list[str]) -> dict[str, Any]:
    """Each variable's value: given, else the recipe's, else the default."""
    values: dict[str, Any] = {}
    for name, variable in VARIABLES.items():
        values[name] = variable.default
        if recipe is not None and name in RECIPE_MAY_SET:
            from_recipe = getattr(recipe.service, name.lower())
            values[name] = variable.default if from_recipe is None else from_recipe
        if name not in given:
            continue
        try:
            values[name] = variable.parse(given[name])
        except ValueError as error:
            shown = "its value" if variable.secret else repr(given[name])
            problems.append(f"{name}: {shown} is not allowed; {error} is")
    return values


def _override(
    recipe: Recipe, given: Mapping[str, str], values: Mapping[str, Any], problems: list[str]
) -> Recipe | None:
    """The recipe with the variables that go over it."""
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
    """DATABASE_URL wins; else POSTGRES_HOST and its companions; else None, the embedded one."""
    if values["DATABASE_URL"] or "POSTGRES_HOST" not in given:
        return values["DATABASE_URL"] or None
    password = values["POSTGRES_PASSWORD"]
    if path := values["POSTGRES_PASSWORD_FILE"]:
        try:
            password = Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            problems.append(f"POSTGRES_PASSWORD_FILE: {path!r} cannot be read ({error})")
        else:
            if not password:
                problems.append(f"POSTGRES_PASSWORD_FILE: {path!r} is empty")
    login = quote(values["POSTGRES_USER"], safe="") + (f":{quote(password, safe='')}" if password else "")
    host = quote(values["POSTGRES_HOST"], safe="[]:.")
    return f"postgresql://{login}@{host}:{values['POSTGRES_PORT']}/{quote(values['POSTGRES_DB'], safe='')}"


def _contradictions(values: Mapping[str, Any], problems: list[str]) -> None:
    """Values that are fine alone and not together."""
    for low, high in (
        ("MIN_CONTENT_CHARS", "MAX_CONTENT_CHARS"),
        ("DB_POOL_MIN_CONN", "DB_POOL_MAX_CONN"),
        ("MIN_NEW_FILES", "MAX_DATASET_SIZE"),
    ):
        if values[low] > values[high]:
            problems.append(f"{low}: {values[low]} is above {high}, {values[high]}")
