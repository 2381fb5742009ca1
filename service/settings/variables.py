"""All environment variables of the service: parser, default, and the recipe value they override."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.logs import FORMATS
from service.settings.parsers import (
    Parser,
    alert_addresses,
    boolean,
    folder,
    key,
    listed,
    number,
    one_of,
    plain,
    postgres_url,
    price,
    server_address,
    some_of,
    wandb_name,
    web_address,
    whole,
)

LONGEST_CONTENT_CHARS = 20_000_000
"""Checking a text of this length takes 10 to 20 seconds without a lease renewal. With ten times the length, the lease
could expire."""

ALERT_KINDS = ("promoted", "refused", "inconclusive", "failed", "paused", "stuck", "disk", "degraded")
"""What an alert may be about."""


@dataclass(frozen=True)
class Variable:
    """One environment variable."""

    parse: Parser
    default: Any = None
    secret: bool = False
    """Messages never contain its value."""


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
    "WANDB_ENTITY": Variable(wandb_name),
    "WANDB_PROJECT": Variable(wandb_name),
    "WANDB_BASE_URL": Variable(web_address),
    "ELECTRICITY_PRICE": Variable(price),
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
    "SANDBOX_SOCKET": Variable(plain),
    "ALERT_URLS": Variable(alert_addresses, (), secret=True),
    "ALERT_URLS_FILE": Variable(plain),
    "ALERT_ON": Variable(some_of(*ALERT_KINDS), tuple(kind for kind in ALERT_KINDS if kind != "inconclusive")),
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
"""All variables of the service. .env.example explains them."""

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
    "WANDB_PROJECT": "tracking.wandb_project",
    "ALLOWED_LICENSES": "hygiene.licenses",
    "BENCHMARK_FILES": "hygiene.benchmarks",
}
"""Variables that override a value of the recipe."""

FOR_COMPOSE = (
    "CODELUPE_UID",
    "CODELUPE_GID",
    "TRAINER_CPUS",
    "TRAINER_MEMORY",
    "SERVE_GPU",
    "SERVE_CPUS",
    "SANDBOX_CPUS",
    "SERVE_QUANTIZATION",
    "SERVE_REVISION",
    "FLASH_ATTN",
)
"""Variables of `.env` that only docker-compose.yml reads."""

FOR_THE_TRAINER = ("HF_TOKEN", "WANDB_API_KEY", "WANDB_MODE", "WANDB_ENTITY", "WANDB_BASE_URL")
"""Variables that are passed to the trainer unchanged."""

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
