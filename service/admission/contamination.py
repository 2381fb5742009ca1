"""Rows that give away an evaluation: its solutions, or ten words in a row of what it asks.

A benchmark is a JSONL file, gzipped or not, in HumanEval's form (`task_id`, `prompt`, `canonical_solution`, `test`) or
MBPP's (`task_id`, `text` or `prompt`, `code`, `test_list`). Two rules: a whole solution, token for token, where it has
at least 20; and runs of ten words of its statement, tests and solution that no other task has (what several tasks
share gives none away), of which a row may hold none.
Not covered: a solution with other names, a statement said in other words.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from service.admission.tokens import CODE_TOKEN, WORD, Hashes, gram_hashes, token_hashes
from service.errors import PreconditionError

LEAST_SOLUTION_TOKENS = 20
LEAST_DISTINCT_WORDS = 5
"""A run of ten words with fewer different ones, numbers left out, is a table: `1 2 3 4` gives no task away."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task of an evaluation."""

    name: str
    solution: str
    texts: tuple[str, ...]
    """Statement, solution and tests."""


def read_tasks(path: Path) -> Iterator[Task]:
    """Tasks of a benchmark's file.

    Raises:
        PreconditionError: the file cannot be read or is empty, or a line is of neither form.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        lines = raw.decode("utf-8-sig").split("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise PreconditionError(
            f"the benchmark {path} cannot be read ({error}); correct hygiene.benchmarks (BENCHMARK_FILES)"
        ) from error
    if not any(map(str.strip, lines)):
        raise PreconditionError(f"the benchmark {path} is empty; correct hygiene.benchmarks (BENCHMARK_FILES)")
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield _task(line, f"{path}, line {number}")


def _task(line: str, where: str) -> Task:
    try:
        match json.loads(line):
            case {"canonical_solution": str(solution), "prompt": str(prompt), "test": str(test), "task_id": name}:
                return Task(name=str(name), solution=solution, texts=(prompt + solution, test))
            case {"code": str(solution), "text": str(text), "test_list": list(tests), "task_id": name} | {
                "code": str(solution),
                "prompt": str(text),
                "test_list": list(tests),
                "task_id": name,
            }:
                return Task(name=str(name), solution=solution, texts=(text, solution, "\n".join(map(str, tests))))
    except ValueError:
        pass  # the same message
    raise PreconditionError(
        f"{where}: neither HumanEval's form (task_id, prompt, canonical_solution, test) nor MBPP's "
        "(task_id, text or prompt, code, test_list)"
    )


class Benchmarks:
    """What must not be learned by heart, as hashes."""

    def __init__(self, paths: Sequence[str], gram_words: int) -> None:
        tasks = [task for path in paths for task in read_tasks(Path(path).expanduser())]
        self._gram_words = gram_words
        self._grams = _own_grams(tasks, gram_words)
        self._solutions = _solutions(tasks)
        self._starts = np.array(sorted(self._solutions), np.uint64)

    def reason(self, text: str) -> str | None:
        """`benchmark` where a text holds a part of one, else None."""
        words = token_hashes(text, WORD)
        if len(words) >= self._gram_words and len(_places(gram_hashes(words, self._gram_words), self._grams)):
            return "benchmark"
        return "benchmark" if self._holds_solution(token_hashes(text, CODE_TOKEN)) else None

    def _holds_solution(self, tokens: Hashes) -> bool:
        """Whether a whole solution is among the tokens; it is looked for by its first ones."""
        if len(tokens) < LEAST_SOLUTION_TOKENS:
            return False
        starts = gram_hashes(tokens, LEAST_SOLUTION_TOKENS)
        return any(
            np.array_equal(tokens[place : place + len(solution)], solution)
            for place in _places(starts, self._starts)
            for solution in self._solutions[int(starts[place])]
        )


def _places(hashes: Hashes, known: Hashes) -> list[int]:
    """Where hashes are that a sorted array has."""
    if not len(known):
        return []
    nearest = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    return np.flatnonzero(known[nearest] == hashes).tolist()


def _own_grams(tasks: Sequence[Task], gram_words: int) -> Hashes:
    """Runs of words that exactly one task has, sorted. A task is one however often it comes: a file is named twice, or
    two say the same with other tests (HumanEval and HumanEval+)."""
    texts: dict[int, set[str]] = defaultdict(set)
    firsts: dict[str | bytes, int] = {}
    for number, task in enumerate(tasks):
        names = task.name, token_hashes(task.solution, CODE_TOKEN).tobytes()
        first = min(firsts.get(name, number) for name in names)
        firsts |= dict.fromkeys(names, first)
        texts[first].update(task.texts)
    found = [np.unique(np.concatenate([_telling_grams(text, gram_words) for text in said])) for said in texts.values()]
    grams, counts = np.unique(np.concatenate([np.zeros(0, np.uint64), *found]), return_counts=True)
    return np.asarray(grams[counts == 1], np.uint64)


def _telling_grams(text: str, gram_words: int) -> Hashes:
    """Hashes of the runs that have enough different words; numbers do not count."""
    words = WORD.findall(text)
    telling = [
        len({word for word in words[n : n + gram_words] if not word[0].isdigit()}) >= LEAST_DISTINCT_WORDS
        for n in range(len(words) - gram_words + 1)
    ]
    hashes: Hashes = gram_hashes(token_hashes(text, WORD), gram_words)[: len(telling)]
    return np.asarray(hashes[np.array(telling, bool)], np.uint64)


def _solutions(tasks: Sequence[Task]) -> Mapping[int, list[Hashes]]:
    """Tokens of whole solutions by the hash of their first ones."""
    found: dict[int, list[Hashes]] = defaultdict(list)
    for task in tasks:
        tokens = token_hashes(task.solution, CODE_TOKEN)
        if len(tokens) >= LEAST_SOLUTION_TOKENS:
            found[int(gram_hashes(tokens[:LEAST_SOLUTION_TOKENS], LEAST_SOLUTION_TOKENS)[0])].append(tokens)
    return found
