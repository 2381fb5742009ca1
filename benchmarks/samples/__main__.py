"""`make bench-samples` shows which samples real repositories yield.

Source distributions take the path of a producer's files. Each is dropped into its own Postgres and claimed with the
default hygiene. Then each builder alone builds samples from the rows. The benchmark also compares the speed of the
builders with the speed of training.

It writes benchmarks/results/samples.md.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import platform
import re
import shutil
import statistics
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urljoin
from urllib.request import urlopen

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from db import embedded, lease, migrate, streams
from db.pool import Pool
from service.cycle.claim import claim_run
from service.cycle.claim_files import Start
from service.intake.drop import drop_paths
from service.intake.records import Given
from service.settings.environment import PROJECT_RECIPES
from service.settings.home import Home
from service.settings.load import load_settings
from trainer.data.encoder import SampleEncoder
from trainer.data.tokenize import TokenRows, tokenize_rows
from trainer.model.load import load_tokenizer
from trainer.recipe import Data, Recipe, pinned
from trainer.recipe_file import load_recipe
from trainer.records import Row, read_rows
from trainer.samples.build import BUILDERS

WORK = ROOT / "build" / "bench" / "samples"
STREAM = "samples"
FASTEST_TOKENS_PER_SECOND = 1245
"""Speed of the default recipe on its card according to `codelupe plan` (60 % of the dense rate)."""
ROUNDS = 3
PYPI = "https://pypi.org/pypi/{name}/json"
NPM = "https://registry.npmjs.org/{name}/-/{name}-{version}.tgz"


@dataclass(frozen=True, kw_only=True)
class Repository:
    """A source distribution."""

    name: str
    language: str
    version: str
    sha256: str
    registry: str = PYPI


REPOSITORIES = [
    Repository(name="flask", language="Python", version="3.1.3",
               sha256="0ef0e52b8a9cd932855379197dd8f94047b359ca0a78695144304cb45f87c9eb"),
    Repository(name="zstandard", language="C", version="0.25.0",
               sha256="7713e1179d162cf5c7906da876ec2ccb9c3a9dcbdffef0cc7f70c3667a205f0b"),
    Repository(name="orjson", language="Rust", version="3.13.0",
               sha256="d1de5eb04485110c5da4c657e49168995d55e076b1ce60f1a042e254f4186c4f"),
    Repository(name="webpack", language="JavaScript", version="5.99.9",
               sha256="2382f23c1e85641b38cc9d374ca3a50d8c396a51925dfca5f0e747a35f356675", registry=NPM),
]  # fmt: skip
"""The distribution of orjson includes the crates that it is built from."""


def fetched(repository: Repository) -> Path:
    """Return the unpacked distribution. It is downloaded once and checked against its hash."""
    folder = WORK / f"{repository.name}-{repository.version}"
    if not folder.exists():
        data = downloaded(repository)
        digest = hashlib.sha256(data).hexdigest()
        if digest != repository.sha256:
            raise SystemExit(f"{repository.name} {repository.version}: sha256 {digest} is not {repository.sha256}")
        temporary = folder.with_name(f".{folder.name}")
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            tar.extraction_filter = getattr(tarfile, "data_filter", None)  # Python before 3.11.4 has none
            tar.extractall(temporary)
        temporary.rename(folder)
    return folder


def downloaded(repository: Repository) -> bytes:
    """Download the packed distribution from the registry."""
    url = repository.registry.format(name=repository.name, version=repository.version)
    try:
        with urlopen(url, timeout=60) as answer:
            data: bytes = answer.read()
        if repository.registry == NPM:
            return data
        files = json.loads(data)["releases"][repository.version]
        (packed,) = [found["url"] for found in files if found["packagetype"] == "sdist"]
        with urlopen(urljoin(url, packed), timeout=120) as answer:
            source: bytes = answer.read()
            return source
    except (OSError, KeyError, ValueError) as error:
        raise SystemExit(
            f"{repository.name} {repository.version} cannot be downloaded from {url} ({error!r})"
        ) from error


# --- intake ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Intake:
    """The result of dropping and claiming a repository's files."""

    repository: Repository
    skipped: Counter[str]
    ineligible: Counter[str]
    refused: Counter[str]
    rows: list[Row]
    """The run's rows, for training and held out."""


def taken_in(repositories: list[Repository]) -> list[Intake]:
    """Drop and claim each repository in its own database."""
    return [_taken_in(repository, fetched(repository)) for repository in repositories]


def _taken_in(repository: Repository, folder: Path) -> Intake:
    with tempfile.TemporaryDirectory(prefix="codelupe-bench-") as temporary:
        home = Home(Path(temporary) / "home")
        home.prepare()
        pool = Pool(embedded.start(Path(temporary) / "postgres"))
        try:
            migrate.apply(pool)
            source = shutil.copytree(
                folder, Path(temporary) / repository.name
            )  # outside this checkout, whose .gitignore covers it
            dropped = drop_paths(pool, [str(source)], Given(repository=repository.name))
            environment = {"CODELUPE_HOME": str(home.root), "MAX_CONTENT_CHARS": "100000"}
            settings = load_settings(PROJECT_RECIPES / "qwen-5090.yaml", environment=environment, env_file=None)
            recipe = replace(pinned(settings.recipe, model="tiny-qwen2", revision="r" * 40), stream=STREAM)
            binding = streams.Binding(source="code_files", base_model="tiny-qwen2", base_revision="r" * 40, lora={})
            streams.bind(pool, STREAM, binding)
            held = lease.acquire(pool, STREAM, home.instance(), 600)
            assert held is not None
            claimed = claim_run(pool, held, home, settings, recipe, Start())
            assert claimed.run_id is not None
            directory = home.run(claimed.run_id)
            rows = [*read_rows(directory.rows), *read_rows(directory.held_out)]
            return Intake(
                repository=repository, skipped=dropped.skipped, ineligible=_ineligible(pool), refused=_refused(pool),
                rows=rows,
            )  # fmt: skip
        finally:
            pool.close()
            embedded.stop(Path(temporary) / "postgres")


def _ineligible(pool: Pool) -> Counter[str]:
    with pool.transaction(read_only=True) as cursor:
        cursor.execute(
            "select case when quality_score < 70 then 'low_score' when length(content) < 50 then 'too_short' "
            "when length(content) > 100000 then 'too_long' end as reason, count(*) from code_files group by 1"
        )
        return Counter({reason: rows for reason, rows in cursor.fetchall() if reason})


def _refused(pool: Pool) -> Counter[str]:
    with pool.transaction(read_only=True) as cursor:
        cursor.execute("select reason, count(*) from codelupe.ledger where disposition = 'rejected' group by 1")
        return Counter(dict(cursor.fetchall()))


# --- the builders ---------------------------------------------------------------------------------------------


def built(rows: list[Row], encoder: SampleEncoder, recipe: Recipe, builder: str) -> TokenRows:
    """Build samples from all rows with one builder."""
    data: Data = replace(recipe.data, builders={builder: 1.0})
    return tokenize_rows(rows, encoder, data, seed=42)


def tokens_per_second(rows: list[Row], encoder: SampleEncoder, recipe: Recipe) -> dict[str, float]:
    """Return the speed at which each builder builds and encodes all rows. Builders take turns; medians."""
    rates: dict[str, list[float]] = {name: [] for name in BUILDERS}
    for _ in range(ROUNDS):
        for name, found in rates.items():
            began = time.perf_counter()
            made = built(rows, encoder, recipe, name)
            seconds = time.perf_counter() - began
            if made.samples:
                found.append(sum(sample.tokens for sample in made.samples) / seconds)
    return {name: statistics.median(found) for name, found in rates.items() if found}


# --- the page -------------------------------------------------------------------------------------------------


def page(intakes: list[Intake], encoder: SampleEncoder, recipe: Recipe) -> Iterator[str]:
    yield "# Samples from real repositories"
    yield ""
    yield f"`make bench-samples` ran on {processor()}. It drops source distributions and claims them with the default"
    yield "recipe's hygiene, with texts of up to 100,000 characters. Then each builder alone builds samples of up to"
    yield "4,096 tokens with the tiny base's tokenizer."
    yield ""
    yield "| repository | skipped by `drop` | ineligible | refused at the claim | rows |"
    yield "|---|---|---|---|---|"
    for intake in intakes:
        name = f"{intake.repository.name} {intake.repository.version} ({intake.repository.language})"
        counts = " | ".join(counted(found) for found in (intake.skipped, intake.ineligible, intake.refused))
        yield f"| {name} | {counts} | {len(intake.rows)} |"
    yield ""
    yield (
        "| builder | repository | rows with samples | samples by kind | tokens | tokens with loss "
        "| rows without samples |"
    )
    yield "|---|---|---|---|---|---|---|"
    for builder in BUILDERS:
        for intake in intakes:
            made = built(intake.rows, encoder, recipe, builder)
            kinds = Counter(sample.kind for sample in made.samples)
            tokens, learned = (sum(getattr(s, key) for s in made.samples) for key in ("tokens", "supervised"))
            share = f"{learned / tokens:.0%}" if tokens else "–"
            yield (
                f"| {builder} | {intake.repository.name} | {len(intake.rows) - len(made.rejected)} | {counted(kinds)} "
                f"| {tokens:,} | {share} | {counted(Counter(made.rejected.values()))} |"
            )
    yield ""
    rows = [row for intake in intakes for row in intake.rows]
    planned = f"{FASTEST_TOKENS_PER_SECOND:,} tokens per second"
    yield f"One process built and tokenized all {len(rows)} rows. According to `codelupe plan`, the default recipe"
    yield f"trains {planned} on its card:"
    yield ""
    yield "| builder | tokens/s | ÷ training speed |"
    yield "|---|---|---|"
    for builder, rate in tokens_per_second(rows, encoder, recipe).items():
        yield f"| {builder} | {rate:,.0f} | {rate / FASTEST_TOKENS_PER_SECOND:,.0f} |"


def counted(found: Counter[str]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in found.most_common()) or "–"


def processor() -> str:
    names = re.findall(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


def main() -> None:
    argparse.ArgumentParser(prog="make bench-samples", description=__doc__).parse_args()
    recipe = load_recipe(PROJECT_RECIPES / "qwen-5090.yaml")
    encoder = SampleEncoder(load_tokenizer(load_recipe(PROJECT_RECIPES / "embedded.yaml").base))
    text = "\n".join(page(taken_in(REPOSITORIES), encoder, recipe)) + "\n"
    target = ROOT / "benchmarks" / "results" / "samples.md"
    target.write_text(text, encoding="utf-8")
    print(text)
    print(f"· {target.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
