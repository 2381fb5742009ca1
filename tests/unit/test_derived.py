"""The heuristic that guesses a solution's algorithm, time and space."""

from __future__ import annotations

import pytest

from service.experiment.derived import derived_metadata

CASES = [
    ("return a % 1.0", "direct", "O(1)", "O(1)"),
    ("for x in a:\n  for y in a:\n   if x == y: return True", "nested-loop", "O(n^2)", "O(1)"),
    ("for x in a:\n  print(x)", "single-loop", "O(n)", "O(1)"),
    ("for x in range(3):\n  print(x)", "single-loop", "O(1)", "O(1)"),
    ("while a:\n  a -= 1", "single-loop", "O(n)", "O(1)"),
    ("while a:\n  a //= 2", "single-loop", "O(log n)", "O(1)"),
    ("return [x + 1 for x in a]", "comprehension", "O(n)", "O(n)"),
    ("return sum(x for x in a)", "comprehension", "O(n)", "O(1)"),
    ("return [[x * y for y in a] for x in a]", "nested-loop", "O(n^2)", "O(n^2)"),
    ("return sorted(a)[0]", "sorting", "O(n log n)", "O(n)"),
    ("for x in a:\n  a.sort()", "sorting", "O(n^2 log n)", "O(1)"),
    ("r = []\n for x in a:\n  r.append(x)\n return r", "single-loop", "O(n)", "O(n)"),
    ("r = []\n for x in a:\n  for y in a:\n   r.append(x)\n return r", "nested-loop", "O(n^2)", "O(n^2)"),
    ("return f(a - 1) if a else 0", "recursion", "O(n)", "O(n)"),
    ("return f(a - 1) + f(a - 2) if a else 0", "recursion", "O(2^n)", "O(n)"),
    ("return max(a, 1)", "direct", "O(1)", "O(1)"),
    ("return max(a)", "direct", "O(n)", "O(1)"),
    ("return a == a[::-1]", "direct", "O(n)", "O(n)"),
    ("return [0] * a", "direct", "O(1)", "O(n)"),
]


@pytest.mark.parametrize(("body", "algorithm", "time", "space"), CASES)
def test_what_a_function_is_taken_for(body, algorithm, time, space):
    assert derived_metadata(f"def f(a):\n {body}\n", "f") == {
        "functionName": "f", "algorithmType": algorithm, "timeComplexity": time, "spaceComplexity": space,
    }  # fmt: skip


def test_the_function_of_the_task_is_judged_and_not_a_helper():
    code = "def helper(a):\n    return sorted(a)\ndef f(a):\n    return a\ndef last(a):\n    return f(a)\n"
    assert derived_metadata(code, "f")["algorithmType"] == "direct"
    assert derived_metadata(code, None)["functionName"] == "last"
    assert derived_metadata(code, "helper")["algorithmType"] == "sorting"


def test_a_cache_makes_two_calls_of_itself_cheap():
    code = "@functools.lru_cache(None)\ndef f(a):\n    return f(a - 1) + f(a - 2) if a else 0\n"
    assert derived_metadata(code, "f")["timeComplexity"] == "O(n)"


@pytest.mark.parametrize("code", ["def f(:", "x = 1", "", "\0", "(" * 3000])
def test_what_is_no_function_has_no_metadata(code):
    assert derived_metadata(code, "f") == {}
