"""Every threshold of hygiene: the last value that passes and the first that does not."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from db.fingerprints import Unknown
from db.source import SourceRow
from service.admission.caps import Caps
from service.admission.contamination import Benchmarks
from service.admission.duplicates import Duplicates, fingerprints, similarity
from service.admission.filters import refusal
from service.admission.secrets import without_secrets
from service.intake.quality import quality_score
from trainer.errors import RecipeError
from trainer.recipe import Hygiene
from trainer.recipe_file import parse_recipe

ROOMY = Hygiene(
    generated="allow",
    longest_line_chars=10**6,
    mean_line_chars=10**6,
    least_alphanumeric_share=0.0,
    largest_encoded_share=1.0,
    longest_encoded_chars=10**6,
)
"""Refuses nothing by default. Each test sets the number that it tests."""
CODE = "".join(f"value_{n} = compute({n}, other_{n})\n" for n in range(20))
FEW_SIGNS = "x y\n"


def padded(part: str, chars: int) -> str:
    """Return a text of this length that begins with `part` and continues with short words."""
    rest = chars - len(part)
    return part + (FEW_SIGNS * rest)[:rest]


# --- filters --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lines", "reason"), [(6, None), (5, "too_few_lines")])
def test_a_text_with_exactly_the_least_lines_is_kept_and_blank_ones_do_not_count(lines: int, reason: str | None):
    text = "".join(f"value_{n} = {n}\n  \n\n" for n in range(lines))
    assert refusal(text, ROOMY, min_lines=6) == reason


@pytest.mark.parametrize(("chars", "reason"), [(20, None), (21, "control_tokens")])
def test_a_text_with_exactly_a_twentieth_of_control_tokens_is_kept(chars: int, reason: str | None):
    token = f"<|{'a' * (chars - 4)}|>"
    assert refusal(padded(token, 400), ROOMY, min_lines=1) == reason


@pytest.mark.parametrize(
    ("name_chars", "reason"), [(0, None), (1, "control_tokens"), (40, "control_tokens"), (41, None)]
)
def test_a_control_token_has_a_name_of_one_to_forty_characters(name_chars: int, reason: str | None):
    assert refusal(f"<|{'a' * name_chars}|>\n" * 10, ROOMY, min_lines=1) == reason


@pytest.mark.parametrize(("chars", "reason"), [(300, None), (301, "long_line")])
def test_a_line_of_exactly_the_longest_length_is_kept(chars: int, reason: str | None):
    hygiene = replace(ROOMY, longest_line_chars=300)
    assert refusal(f"{CODE}{'x ' * 200}"[: len(CODE) + chars] + "\nx = 1\n", hygiene, min_lines=1) == reason


@pytest.mark.parametrize(("last", "reason"), [(51, None), (52, "long_lines")])
def test_lines_of_exactly_the_mean_length_are_kept_and_blank_ones_do_not_count(last: int, reason: str | None):
    hygiene = replace(ROOMY, mean_line_chars=50)
    text = "\n\n".join("x" * chars for chars in (49, 50, last))
    assert refusal(text, hygiene, min_lines=1) == reason


@pytest.mark.parametrize("share", [0.25, 0.5])
@pytest.mark.parametrize(("missing", "reason"), [(0, None), (1, "few_letters")])
def test_a_text_with_exactly_the_least_share_of_letters_is_kept(share: float, missing: int, reason: str | None):
    letters = int(400 * share) - missing
    signs = "a" * letters + "*" * (400 - letters)
    text = "\n   \n".join(signs[n : n + 40] for n in range(0, 400, 40))  # blank lines and line ends do not count
    assert refusal(text, replace(ROOMY, least_alphanumeric_share=share), min_lines=1) == reason


@pytest.mark.parametrize(("number", "reason"), [(10, "generated"), (11, None)])
def test_the_tenth_line_is_the_last_that_says_that_a_file_is_generated(number: int, reason: str | None):
    before = "".join(f"value_{n} = {n}\n\n" for n in range(number - 1))
    text = f"{before}# @generated\n{CODE}"
    assert refusal(text, replace(ROOMY, generated="refuse"), min_lines=1) == reason


@pytest.mark.parametrize(("between", "reason"), [(80, "generated"), (81, None)])
def test_generated_and_do_not_edit_stand_eighty_characters_apart_at_most(between: int, reason: str | None):
    text = f"# what was generated {'x' * (between - 2)} do not edit twice\n{CODE}"
    assert refusal(text, replace(ROOMY, generated="refuse"), min_lines=1) == reason


@pytest.mark.parametrize(("share", "most"), [(0.5, 128), (0.75, 192)])
@pytest.mark.parametrize(("more", "reason"), [(0, None), (1, "encoded")])
def test_a_text_with_exactly_the_largest_encoded_share_is_kept(share: float, most: int, more: int, reason: str | None):
    text = padded("Q" * (most + more) + " ", 256)
    assert refusal(text, replace(ROOMY, largest_encoded_share=share), min_lines=1) == reason


@pytest.mark.parametrize(("chars", "reason"), [(100, None), (101, "encoded")])
def test_encoded_data_of_exactly_the_longest_length_is_kept(chars: int, reason: str | None):
    text = padded("Q" * chars + " ", 1000)
    assert refusal(text, replace(ROOMY, longest_encoded_chars=100), min_lines=1) == reason


@pytest.mark.parametrize(("unit", "least"), [("Q", 64), ("\\x41", 32), ("41 ", 32), ("\\u00e9", 16)])
@pytest.mark.parametrize(("missing", "reason"), [(0, "encoded"), (1, None)])
def test_what_counts_as_encoded_has_a_least_length(unit: str, least: int, missing: int, reason: str | None):
    text = f"name = '{unit * (least - missing)}'\n{CODE}"
    assert refusal(text, replace(ROOMY, largest_encoded_share=0.0), min_lines=1) == reason


# --- caps -----------------------------------------------------------------------------------------------------


def row(file_id: int, content: str = "x = 1\n", **facts: Any) -> SourceRow:
    """Return a row with its own repository."""
    given = {"repository": f"r{file_id}", "path": "a.py", "language": "python", "sha256": "", "quality_score": 90.0,
             "held_out": False, "attempts": 0, "metadata": {}} | facts  # fmt: skip
    return SourceRow(file_id=file_id, content=content, **given)


@pytest.mark.parametrize("most", [1, 3])
def test_a_repository_fills_exactly_its_cap(most: int):
    caps = Caps(Hygiene(max_rows_per_repository=most))
    assert [caps.admit(row(n, repository="one")) for n in range(most + 1)] == [True] * most + [False]


@pytest.mark.parametrize("most", [1, 3])
def test_an_author_fills_exactly_a_cap(most: int):
    caps = Caps(Hygiene(max_rows_per_author=most))
    assert [caps.admit(row(n, metadata={"author": "one"})) for n in range(most + 1)] == [True] * most + [False]


def test_without_a_cap_there_is_always_room():
    caps = Caps(Hygiene(max_rows_per_repository=None, max_rows_per_author=None))
    rows = [row(n, repository="one", metadata={"author": "one"}) for n in range(6000)]
    assert all(map(caps.admit, rows))


# --- duplicates -----------------------------------------------------------------------------------------------

ALIKE = (CODE, CODE + "def last(first):\n    return first * 2 + 1\n")


class Remembered(Duplicates):
    """Looks for duplicates among the rows of one claim. `told` has the size of each stored batch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, hygiene: Hygiene, old: list[str]) -> None:
        super().__init__(None, hygiene)  # type: ignore[arg-type]
        self.told: list[int] = []
        rows = [Unknown(file_id=n, version=0, content=text, metadata={}) for n, text in enumerate(old)]
        monkeypatch.setattr(self._known, "candidates", lambda made: [])
        monkeypatch.setattr(self._known, "missing", lambda: iter(rows))
        monkeypatch.setattr(self._known, "complete", lambda: None)
        monkeypatch.setattr(self._known, "remember", lambda found: self.told.append(len(found)))


@pytest.mark.parametrize(("above", "reason"), [(False, "near_duplicate"), (True, None)])
def test_texts_of_exactly_the_least_similarity_are_near_duplicates(
    monkeypatch: pytest.MonkeyPatch, above: bool, reason: str | None
):
    one, other = fingerprints(ALIKE)
    found = similarity(one.signature, other.signature)
    assert 0.5 < found < 1
    hygiene = Hygiene(near_duplicate_jaccard=math.nextafter(found, 2.0) if above else found)
    rows = [row(n, text) for n, text in enumerate(ALIKE)]
    assert Remembered(monkeypatch, hygiene, []).reasons(rows) == [None, reason]


@pytest.mark.parametrize(("rows", "told"), [(199, [199]), (200, [200, 0]), (201, [200, 1])])
def test_two_hundred_old_rows_are_remembered_together(monkeypatch: pytest.MonkeyPatch, rows: int, told: list[int]):
    known = Remembered(monkeypatch, Hygiene(), ["x"] * rows)
    assert known.catch_up(lambda: None, lambda text: text) == rows
    assert known.told == told


@pytest.mark.parametrize(("chars", "told"), [(2_000_000, [1, 1]), (1_999_999, [2, 0]), (1_999_998, [2])])
def test_two_million_characters_of_old_rows_are_remembered_together(
    monkeypatch: pytest.MonkeyPatch, chars: int, told: list[int]
):
    known = Remembered(monkeypatch, Hygiene(), ["x" * chars, "y"])
    known.catch_up(lambda: None, lambda text: text[:10])
    assert known.told == told


# --- contamination --------------------------------------------------------------------------------------------

WORDS = ["amber", "birch", "cedar", "dune", "elm", "fern", "grove", "hazel", "iris", "juniper", "kelp", "laurel"]
LETTERS = [f"{letter}{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]


def benchmark(tmp_path: Path, gram_words: int, text: str = "", code: str = "") -> Benchmarks:
    """Return a benchmark of one task."""
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({"task_id": 1, "text": text, "code": code, "test_list": []}))
    return Benchmarks([str(path)], gram_words)


@pytest.mark.parametrize("gram_words", [5, 10])
@pytest.mark.parametrize(("missing", "reason"), [(0, "benchmark"), (1, None)])
def test_exactly_so_many_words_in_a_row_give_a_task_away(
    tmp_path: Path, gram_words: int, missing: int, reason: str | None
):
    found = benchmark(tmp_path, gram_words, text=" ".join(WORDS))
    words = WORDS[: gram_words - missing]
    assert found.reason(" ".join(words)) == reason
    assert found.reason(" ".join(["before", *words, "after"])) == reason


@pytest.mark.parametrize(("missing", "reason"), [(0, "benchmark"), (1, None)])
def test_a_statement_of_exactly_so_many_words_can_be_given_away(tmp_path: Path, missing: int, reason: str | None):
    statement = " ".join(WORDS[: 10 - missing])
    assert benchmark(tmp_path, 10, text=statement).reason(f"# {statement} and on") == reason


@pytest.mark.parametrize(("different", "reason"), [(5, "benchmark"), (4, None)])
def test_a_run_of_words_tells_with_five_different_ones_and_numbers_do_not_count(
    tmp_path: Path, different: int, reason: str | None
):
    words = [*WORDS[:different], WORDS[0], *map(str, range(9 - different))]
    assert benchmark(tmp_path, 10, text=" ".join(words)).reason(f"# {' '.join(words)}") == reason


@pytest.mark.parametrize(("tasks", "reason"), [(1, "benchmark"), (2, None)])
def test_words_give_a_task_away_where_exactly_one_has_them(tmp_path: Path, tasks: int, reason: str | None):
    lines = [{"task_id": n, "text": " ".join(WORDS), "code": f"own_{n}()", "test_list": []} for n in range(tasks)]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert Benchmarks([str(tmp_path / "own.jsonl")], 10).reason(" ".join(WORDS)) == reason


@pytest.mark.parametrize(("tokens", "reason"), [(20, "benchmark"), (19, None)])
def test_a_solution_of_exactly_twenty_tokens_counts(tmp_path: Path, tokens: int, reason: str | None):
    code = " ".join(LETTERS[:tokens])
    found = benchmark(tmp_path, 50, code=code)
    assert found.reason(code) == reason
    assert found.reason(f"{CODE}{code}\n{CODE}") == reason


def test_all_of_a_longer_solution_has_to_be_there(tmp_path: Path):
    found = benchmark(tmp_path, 50, code=" ".join(LETTERS[:21]))
    assert found.reason(" ".join(LETTERS[:21])) == "benchmark"
    assert found.reason(" ".join(LETTERS[:20])) is None


# --- secrets --------------------------------------------------------------------------------------------------

MIXED = "aB3dE6gH9jkL2mN5pQ7rS8tU4vW1xY0z"
"""Thirty-two different characters."""


def replaced(text: str) -> int:
    """Return the number of replaced secrets."""
    found: Counter[str] = Counter()
    without_secrets(text, found)
    return found.total()


@pytest.mark.parametrize(("value", "count"), [("q7x2k9m4", 1), ("q7x2k9m", 0)])
def test_a_password_has_eight_characters_at_least(value: str, count: int):
    assert replaced(f'password = "{value}"') == count


@pytest.mark.parametrize(("value", "count"), [("q7q7x2k9", 1), ("q7q2q4k9", 0)])
def test_a_password_has_exactly_two_and_a_half_bits_a_character_or_more(value: str, count: int):
    assert replaced(f'password = "{value}"') == count


@pytest.mark.parametrize(("twice", "count"), [(MIXED[:16] * 2, 1), (MIXED[:16] + MIXED[:15] + MIXED[0], 0)])
def test_a_token_has_exactly_four_bits_a_character_or_more(twice: str, count: int):
    assert replaced(f'signature = "{twice}"') == count


@pytest.mark.parametrize(("chars", "count"), [(31, 0), (32, 1), (200, 1), (201, 0)])
def test_a_token_has_from_32_to_200_characters(chars: int, count: int):
    assert replaced(f'signature = "{(MIXED * 7)[:chars]}"') == count


@pytest.mark.parametrize(("chars", "count"), [(200, 1), (201, 0)])
def test_an_assigned_password_has_200_characters_at_most(chars: int, count: int):
    value = "!aB3dE6gH9" * 21  # the punctuation keeps it from being a token
    assert replaced(f'token := "{value[:chars]}"') == count


@pytest.mark.parametrize(("value", "count"), [("!7x2k9m4", 1), ("!7x2k9m", 0)])
def test_an_assigned_password_has_eight_characters_at_least(value: str, count: int):
    assert replaced(f'token := "{value}"') == count


@pytest.mark.parametrize(("chars", "count"), [(1000, 1), (1001, 0)])
def test_passwords_are_looked_for_in_lines_of_1000_characters_at_most(chars: int, count: int):
    line = 'password = "q7x2k9m4" # '
    assert replaced(line + "x" * (chars - len(line))) == count


@pytest.mark.parametrize(("between", "count"), [(120, 1), (121, 0)])
def test_a_name_stands_120_characters_before_its_value_at_most(between: int, count: int):
    assert replaced(f"signature{' ' * between}'{MIXED}'") == count


@pytest.mark.parametrize(("chars", "count"), [(16, 1), (15, 0)])
def test_a_private_key_has_a_line_of_sixteen_characters_at_least(chars: int, count: int):
    assert replaced(f"-----BEGIN PRIVATE KEY-----\n{MIXED[:chars]}\n-----END PRIVATE KEY-----") == count


@pytest.mark.parametrize("chars", [1, 15, 16])
def test_the_last_line_of_a_private_key_gives_way_however_short(chars: int):
    key = f"-----BEGIN PRIVATE KEY-----\n{MIXED}\n%s\n-----END PRIVATE KEY-----"
    assert without_secrets(key % MIXED[:chars], Counter()) == key.replace(f"\n{MIXED}\n%s", "REDACTED_PRIVATE_KEY")


@pytest.mark.parametrize(("more", "left"), [(1000, 0), (1001, 1)])
def test_what_goes_on_after_a_secret_gives_way_for_1000_characters(more: int, left: int):
    clean = without_secrets('x = "AKIAQ4WJX7ZN2LMKD5TB' + "-" * more + '"', Counter())
    assert clean.count("-") == left


# --- quality --------------------------------------------------------------------------------------------------


def scored(lines: list[str]) -> float:
    """Return the score of lines that include one comment."""
    return quality_score("\n".join(["# why", *lines]))


def different(count: int) -> list[str]:
    """Return this many different lines."""
    return [f"value{n} = other{n}" for n in range(count)]


@pytest.mark.parametrize(("said_again", "score"), [(3, 100.0), (4, 95.7)])
def test_three_tenths_of_repeated_lines_cost_nothing(said_again: int, score: float):
    lines = different(9 - said_again)
    assert scored(lines + lines[:1] * said_again) == score


@pytest.mark.parametrize(("chars", "score"), [(120, 100.0), (121, 97.0)])
def test_a_line_of_120_characters_costs_nothing(chars: int, score: float):
    assert scored([*different(8), "x" * chars]) == score


def test_only_lines_over_120_characters_cost_something():
    assert scored([*different(7), "x" * 120, "y" * 121]) == 97.0


@pytest.mark.parametrize(("missing", "score"), [(0, 100.0), (1, 80.0)])
def test_two_fifths_of_letters_cost_nothing_and_blanks_do_not_count(missing: int, score: float):
    lines = [f"{n}abcdefg \t {'(' * 12}" for n in range(4)]
    assert quality_score("\n".join([*lines, "4abcdefg"[missing:] + "(" * (12 + missing)])) == score


@pytest.mark.parametrize(("comments", "score"), [(6, 100.0), (7, 90.0)])
def test_three_fifths_of_comments_cost_nothing(comments: int, score: float):
    assert quality_score("\n".join([f"# why {n}" for n in range(comments)] + different(10 - comments))) == score


@pytest.mark.parametrize(("lines", "score"), [(100, 100.0), (101, 90.0)])
def test_a_hundred_lines_need_no_comment(lines: int, score: float):
    assert quality_score("\n".join(different(lines))) == score
    assert quality_score("\n".join(["# why", *different(lines)])) == 100.0


@pytest.mark.parametrize(("lines", "score"), [(5, 100.0), (4, 90.0)])
def test_five_lines_are_enough_and_blank_ones_do_not_count(lines: int, score: float):
    assert quality_score("\n\n \n".join(different(lines))) == score


@pytest.mark.parametrize(("unfinished", "score"), [(0, 100.0), (1, 95.0), (2, 90.0), (3, 90.0)])
@pytest.mark.parametrize("word", ["TODO", "FIXME", "XXX", "HACK"])
def test_unfinished_lines_cost_ten_at_most(word: str, unfinished: int, score: float):
    assert scored(different(19 - unfinished) + [f"later{n}() # {word}" for n in range(unfinished)]) == score


def test_each_hundredth_of_unfinished_lines_costs_one():
    assert scored([*different(9), "later() # TODO"]) == 90.9


def test_the_worst_text_and_one_of_blanks_come_to_nothing():
    assert quality_score(f"# TODO {'(' * 121}\n" * 2000) == 0.0
    assert quality_score("\n \n") == 0.0


# --- the recipe -----------------------------------------------------------------------------------------------

RANGES: dict[str, tuple[float, float | None, float]] = {
    "near_duplicate_jaccard": (0.5, 1.0, 0.7),
    "longest_line_chars": (1, None, 1000),
    "mean_line_chars": (1, None, 100),
    "least_alphanumeric_share": (0.0, 1.0, 0.25),
    "largest_encoded_share": (0.0, 1.0, 0.5),
    "longest_encoded_chars": (64, None, 1024),
    "max_rows_per_repository": (1, None, 5000),
    "max_rows_per_author": (1, None, 5000),
    "benchmark_gram_words": (5, 100, 10),
}
"""Minimum, maximum (or None) and the default."""


def read(name: str, value: float) -> float:
    """Read a hygiene number as a recipe gives it."""
    recipe = parse_recipe({"name": "a", "stream": "b", "hygiene": {name: value}}, where="r")
    return float(getattr(recipe.hygiene, name))


def beyond(value: float, towards: float) -> float:
    """Return the next value: one more for integers, the next float for others."""
    return value + math.copysign(1, towards) if isinstance(value, int) else math.nextafter(value, towards)


@pytest.mark.parametrize("name", RANGES)
def test_a_number_that_a_recipe_leaves_out(name: str):
    assert getattr(Hygiene(), name) == RANGES[name][2]


@pytest.mark.parametrize("name", RANGES)
def test_the_least_number_is_allowed_and_less_is_not(name: str):
    least = RANGES[name][0]
    assert read(name, least) == least
    with pytest.raises(RecipeError, match=rf"hygiene\.{name}: .* is below the minimum"):
        read(name, type(least)(beyond(least, -math.inf)))


@pytest.mark.parametrize("name", RANGES)
def test_the_greatest_number_is_allowed_and_more_is_not(name: str):
    most = RANGES[name][1]
    if most is None:
        assert read(name, 10**15) == 10**15
        return
    assert read(name, most) == most
    with pytest.raises(RecipeError, match=rf"hygiene\.{name}: .* is above the maximum"):
        read(name, type(most)(beyond(most, math.inf)))


def test_every_number_of_the_hygiene_has_its_range_here():
    numbers = {name for name, value in vars(Hygiene()).items() if isinstance(value, int | float)}
    assert numbers == set(RANGES)
