"""`--adapter` and `--suite` of `codelupe evaluate`: what a word means, and what is said when it means nothing."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from test_suites import HUMANEVAL, MBPP

from db.adapters import Adapter
from service.cli.evaluation import find_benchmark
from service.errors import PreconditionError, UsageError
from service.publish.chosen import choose_adapter
from service.settings.home import Home
from service.settings.load import load_settings

RECIPE = Path(__file__).parents[2] / "recipes" / "embedded.yaml"


def adapter(version: int, *, is_current: bool = False) -> Adapter:
    return Adapter(
        version=version, stream="s", parent_version=None, folder="", manifest_sha256="", evaluation={},
        published_at=datetime(2026, 11, 27, tzinfo=UTC), is_current=is_current,
    )  # fmt: skip


HISTORY = [adapter(9), adapter(7, is_current=True), adapter(4), adapter(2)]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path)
    for version in (4, 7, 9):
        home.adapter(version).mkdir(parents=True)
        (home.adapter(version) / "adapter_config.json").write_text("{}")
    return home


def test_words_and_versions(home):
    def found(word: str) -> tuple[str, str | None]:
        chosen = choose_adapter(word, home, lambda: HISTORY)
        assert chosen.folder is None or chosen.folder.is_absolute()
        return chosen.label, chosen.served_name

    assert found("current") == ("v000007", "codelupe-v000007")
    assert found("previous") == ("v000004", "codelupe-v000004"), "after a rollback, the one before the current one"
    assert found("9") == ("v000009", "codelupe-v000009")
    assert found(str(home.adapter(4))) == ("v000004", None)


def test_the_base_and_a_folder_need_no_database(home):
    def never() -> list[Adapter]:
        raise AssertionError("no database is needed")

    assert choose_adapter("base", home, never).folder is None
    assert choose_adapter(str(home.adapter(4)), home, never).folder == home.adapter(4)


@pytest.mark.parametrize(
    ("word", "history", "error", "problem"),
    [
        ("current", [], PreconditionError, "`base` stands for"),
        ("previous", [adapter(7, is_current=True)], PreconditionError, "no adapter before version 7"),
        ("3", HISTORY, UsageError, "codelupe adapters"),
        ("2", HISTORY, PreconditionError, "KEEP_ADAPTERS"),
        ("latest", HISTORY, UsageError, "'latest' is neither base, current, previous"),
    ],
)
def test_what_is_not_there_is_named(home, word, history, error, problem):
    with pytest.raises(error, match=problem):
        choose_adapter(word, home, lambda: history)


def test_benchmarks_are_found_by_their_form(tmp_path):
    human, mbpp = tmp_path / "one.jsonl.gz", tmp_path / "two.jsonl"
    human.write_bytes(gzip.compress(json.dumps(HUMANEVAL).encode()))
    mbpp.write_text(f"\n{json.dumps(MBPP)}\n")

    def find(suite: str, files: str) -> Path:
        environment = {"CODELUPE_HOME": str(tmp_path), "BENCHMARK_FILES": files}
        return find_benchmark(suite, load_settings(RECIPE, environment=environment, env_file=None))

    assert find("humaneval", f"{mbpp},{human}") == human and find("mbpp", f"{mbpp},{human}") == mbpp
    assert find(str(mbpp), "") == mbpp
    plus = tmp_path / "HumanEvalPlus.jsonl"  # in EvalPlus' own form, which has no tests
    plus.write_text(json.dumps({key: value for key, value in HUMANEVAL.items() if key != "test"}))
    assert find("humaneval", f"{plus},{human}") == human
    with pytest.raises(UsageError, match=r"The recipe names no benchmark.*BENCHMARK_FILES.*--suite PATH"):
        find("humaneval", "")
    with pytest.raises(UsageError, match=r"None of .*two.jsonl has its form"):
        find("humaneval", str(mbpp))
    with pytest.raises(UsageError, match="'hellaswag' is neither humaneval, mbpp, held-out, fim, nor a file"):
        find("hellaswag", "")
    (tmp_path / "bad.jsonl").write_text("{")
    with pytest.raises(PreconditionError, match="cannot be read"):
        find("mbpp", str(tmp_path / "bad.jsonl"))
