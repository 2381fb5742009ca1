"""What a model is asked for each task, and the code in its answer. (no torch)

Two styles: `completion` continues a text, as a base model does; `chat` asks for code in a fence, in the words that
the builder `instruction` trains.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from trainer.evaluate.suites import Task
from trainer.samples.instruction import INSTRUCTIONS, SYSTEM

Style = Literal["chat", "completion"]
STYLES: tuple[Style, ...] = ("chat", "completion")

STOPS: dict[str, tuple[str, ...]] = {
    "humaneval": ("\nclass", "\ndef", "\n#", "\nif", "\nprint"),
    "mbpp": ("\nclass", "\nassert", '\n"""', "\nprint", "\nif", "\n<|/", "\n```"),
}
"""Where a continued text ends. HumanEval's are those of Chen et al. 2021; MBPP's are those of BigCode's harness."""

FENCED = re.compile(r"^(?P<fence>`{3,})[^\n`]*\n(?P<code>.*?)(?:^(?P=fence)|\Z)", re.DOTALL | re.MULTILINE)
"""A fenced block. The last one may lack its end, if the answer was cut."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a model is asked for one task. Exactly one of the three forms is set."""

    text: str | None = None
    """The model continues this text."""
    messages: tuple[tuple[str, str], ...] = ()
    """Role and content of each message of a chat."""
    ids: tuple[int, ...] = ()
    """The model continues these token ids."""
    stops: tuple[str, ...] = ()
    """The text ends before the first of these."""
    ends: tuple[int, ...] = ()
    """Token ids that end the text, besides the tokenizer's own."""


def question_for(task: Task, style: Style) -> Question:
    """Return what to ask for a task."""
    if style == "completion":
        return Question(text=_continued(task), stops=STOPS[task.form])
    return Question(messages=(("system", SYSTEM), ("user", _asked(task))))


def completion_of(task: Task, answer: str, style: Style) -> str:
    """Return what `Task.program` needs: the rest of a function, or whole code."""
    if style == "completion":
        return cut(answer, STOPS[task.form])
    code = _fenced(answer, task.entry_point)
    if task.form == "mbpp":
        return code
    if _defines(code, task.entry_point):
        return _after_prompt(task) + code
    return code if task.prompt.endswith("\n") else f"\n{code}"


def cut(text: str, stops: Sequence[str]) -> str:
    """Return the text before the first stop."""
    return text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))]


def _continued(task: Task) -> str:
    if task.form == "humaneval":
        return task.prompt
    # A description and tests as a docstring at the top of a file.
    return f'"""\n{task.prompt}\n{task.tests.strip()}\n"""\n'


def _asked(task: Task) -> str:
    if task.form == "humaneval":
        return f"{INSTRUCTIONS[0].format(language='Python')}\n\n```python\n{task.prompt.rstrip()}\n```"
    return (
        f"{INSTRUCTIONS[2].format(language='Python')}\n\n{task.prompt}\n\n"
        f"Your code should pass these tests:\n\n```python\n{task.tests.strip()}\n```"
    )


def _fenced(answer: str, entry_point: str) -> str:
    """The block that defines the entry point, else the first one, else the whole answer."""
    blocks = [found["code"] for found in FENCED.finditer(answer)]
    return next((block for block in blocks if _defines(block, entry_point)), blocks[0] if blocks else answer)


def _defines(code: str, name: str) -> bool:
    """Whether code defines a function at its top level. An answer that was cut may not parse: its lines decide."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return any(isinstance(node, ast.FunctionDef) and node.name == name for node in ast.parse(code).body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return re.search(rf"^def {re.escape(name)}\b", code, re.MULTILINE) is not None


def _after_prompt(task: Task) -> str:
    """What makes the prompt's function whole, so that a second definition of it can follow."""
    return "\n" if task.helpers == task.prompt else "    pass\n\n"
