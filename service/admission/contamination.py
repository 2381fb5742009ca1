"""Finds rows that leak a benchmark: a whole solution, or ten consecutive words of a task.

A benchmark is a JSONL file, gzipped or not. It has HumanEval's format (`task_id`, `prompt`, `canonical_solution`, and
`test` if there is one) or MBPP's (`task_id`, `text` or `prompt`, `code`, `test_list`). EvalPlus' files have the first:
without `test`, but with `assertion` or with inputs, which are data. A row leaks a task in two cases:

- It holds the task's whole solution, token for token. Solutions under 20 tokens are not searched for.
- It holds ten consecutive words of the task's statement, tests or solution. Word runs that several tasks share do not
  count.

Not covered: solutions with renamed identifiers, and paraphrased statements.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from service.admission.tokens import CODE_TOKEN, WORD, Hashes, gram_hashes, token_hashes
from service.errors import PreconditionError

LEAST_SOLUTION_TOKENS = 20
LEAST_DISTINCT_WORDS = 5
"""Runs with fewer distinct words are ignored: most are tables, such as `1 2 3 4`. Numbers do not count as words."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task of a benchmark."""

    name: str
    solution: str
    texts: tuple[str, ...]
    """Statement, solution and tests."""


def read_tasks(path: Path) -> Iterator[Task]:
    """Yield the tasks of a benchmark file.

    Raises:
        PreconditionError: the file is unreadable or empty, or a line has neither format.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        lines = raw.decode("utf-8-sig").split("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise PreconditionError(
            f"the benchmark {path} cannot be read ({error}). Correct hygiene.benchmarks (BENCHMARK_FILES)"
        ) from error
    if not any(map(str.strip, lines)):
        raise PreconditionError(f"the benchmark {path} is empty. Correct hygiene.benchmarks (BENCHMARK_FILES)")
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield _task(line, f"{path}, line {number}")


def _task(line: str, where: str) -> Task:
    try:
        match json.loads(line):
            case {"canonical_solution": str(solution), "prompt": str(prompt), "task_id": name, **more}:
                tests = (text for text in map(more.get, ("test", "assertion")) if isinstance(text, str))
                return Task(name=str(name), solution=solution, texts=(prompt + solution, *tests))
            case {"code": str(solution), "text": str(text), "test_list": list(tests), "task_id": name} | {
                "code": str(solution),
                "prompt": str(text),
                "test_list": list(tests),
                "task_id": name,
            }:
                return Task(name=str(name), solution=solution, texts=(text, solution, "\n".join(map(str, tests))))
    except (ValueError, RecursionError):
        pass  # report it below
    raise PreconditionError(
        f"{where} has neither HumanEval's format (task_id, prompt, canonical_solution) nor MBPP's "
        "(task_id, text or prompt, code, test_list)"
    )


class Benchmarks:
    """Hashes of all benchmark tasks, or of `only` the named ones, to check rows against."""

    def __init__(self, paths: Sequence[str], gram_words: int, *, only: Collection[str] | None = None) -> None:
        tasks = [task for path in paths for task in read_tasks(Path(path).expanduser())]
        if only is not None:
            tasks = [task for task in tasks if task.name in only]
        self._gram_words = gram_words
        self._grams = _own_grams(tasks, gram_words)
        self._solutions = _solutions(tasks)
        self._starts = np.array(sorted(self._solutions), np.uint64)

    def reason(self, text: str) -> str | None:
        """Return `benchmark` if the text leaks a task, else None."""
        words = token_hashes(text, WORD)
        if len(words) >= self._gram_words and len(_places(gram_hashes(words, self._gram_words), self._grams)):
            return "benchmark"
        return "benchmark" if self._holds_solution(token_hashes(text, CODE_TOKEN)) else None

    def _holds_solution(self, tokens: Hashes) -> bool:
        """Whether the tokens contain a whole solution. The hash of its first tokens finds candidates."""
        if len(tokens) < LEAST_SOLUTION_TOKENS:
            return False
        starts = gram_hashes(tokens, LEAST_SOLUTION_TOKENS)
        return any(
            np.array_equal(tokens[place : place + len(solution)], solution)
            for place in _places(starts, self._starts)
            for solution in self._solutions[int(starts[place])]
        )


def _places(hashes: Hashes, known: Hashes) -> list[int]:
    """Indices of the hashes that occur in the sorted array `known`."""
    if not len(known):
        return []
    nearest = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    return np.flatnonzero(known[nearest] == hashes).tolist()


def _own_grams(tasks: Sequence[Task], gram_words: int) -> Hashes:
    """Sorted hashes of the word runs that exactly one task has.

    Two entries are one task if name or solution are equal, for example in HumanEval and HumanEval+.
    """
    texts: dict[int, set[str]] = defaultdict(set)
    firsts: dict[str | bytes, int] = {}
    for number, task in enumerate(tasks):
        names = task.name, token_hashes(task.solution, CODE_TOKEN).tobytes()
        first = min(firsts.get(name, number) for name in names)
        firsts |= dict.fromkeys(names, first)
        texts[first].update(task.texts)
    found = [
        np.unique(np.concatenate([_distinctive_grams(text, gram_words) for text in own])) for own in texts.values()
    ]
    grams, counts = np.unique(np.concatenate([np.zeros(0, np.uint64), *found]), return_counts=True)
    return np.asarray(grams[counts == 1], np.uint64)


def _distinctive_grams(text: str, gram_words: int) -> Hashes:
    """Hashes of the word runs with enough distinct words. Numbers do not count."""
    words = WORD.findall(text)
    distinctive = [
        len({word for word in words[n : n + gram_words] if not word[0].isdigit()}) >= LEAST_DISTINCT_WORDS
        for n in range(len(words) - gram_words + 1)
    ]
    hashes: Hashes = gram_hashes(token_hashes(text, WORD), gram_words)[: len(distinctive)]
    return np.asarray(hashes[np.array(distinctive, bool)], np.uint64)


def _solutions(tasks: Sequence[Task]) -> Mapping[int, list[Hashes]]:
    """Tokens of each solution, by the hash of its first tokens."""
    found: dict[int, list[Hashes]] = defaultdict(list)
    for task in tasks:
        tokens = token_hashes(task.solution, CODE_TOKEN)
        if len(tokens) >= LEAST_SOLUTION_TOKENS:
            found[int(gram_hashes(tokens[:LEAST_SOLUTION_TOKENS], LEAST_SOLUTION_TOKENS)[0])].append(tokens)
    return found
