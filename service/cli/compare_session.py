"""The conversation of `codelupe compare`: what the user types, and what the models answer."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TextIO

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from service.cli.console import out
from service.cycle.comparing import Answer, AnswerFailed, Answers, Settings
from service.errors import ServiceError
from service.publish.chosen import Chosen

LIMITS: dict[str, tuple[type, float, float]] = {
    "temperature": (float, 0, 100), "top_p": (float, 0.001, 1), "max_tokens": (int, 1, 1 << 20),
    "top_k": (int, 0, 1 << 20), "repetition_penalty": (float, 0.01, 100),
}  # fmt: skip
"""Kind, lowest and highest value of each setting."""
HELP = """\
/set temperature VALUE   0: the likeliest token each time; higher: more varied
/set top_p VALUE         draw from the likeliest tokens up to this sum
/set top_k VALUE         draw from so many likeliest tokens (0: all)
/set repetition_penalty VALUE   above 1: repeat less
/set max_tokens VALUE    longest answer
/compare                 show the last answers side by side
/models                  list what can be compared
/models A B              compare these from now on
/quit                    end (or Ctrl-D). Ctrl-C stops an answer
Anything else is a prompt. A line that ends in \\ goes on in the next one."""


class Session:
    """Two models, the settings, and the last answers."""

    def __init__(
        self, answers: Answers, models: Sequence[Chosen], settings: Settings, *, style: str | None,
        found: Callable[[], Sequence[Chosen]], choose: Callable[[str], Chosen],
    ) -> None:  # fmt: skip
        self._answers, self.models, self.settings, self._style = answers, list(models), settings, style
        self._found, self._choose = found, choose
        self.last: list[Answer] = []

    def talk(self, lines: TextIO) -> None:
        """Read lines until /quit or the end."""
        terminal = lines.isatty()
        if terminal:
            names = " and ".join(one.label for one in self.models)
            out.print(f"{names} on {self._answers.facts['device']}. /help lists the commands", markup=False)
        while (line := _read(lines, terminal)) is not None:
            if not line.strip():
                continue
            if line.startswith("/"):
                name, *words = line.split()
                if name == "/quit":
                    return
                self._command(name, words)
            else:
                try:
                    self.ask(line, style=self._style)
                except AnswerFailed as error:
                    out.print(str(error), markup=False)

    def ask(self, prompt: str, *, style: str | None, name: str | None = None) -> None:
        """Let each model answer in turn, and print the text as it comes."""
        self.last = []
        if name is not None:
            out.print(f"── {name} ──", markup=False, style="bold")
        for model in self.models:
            out.print(f"[{model.label}]", markup=False, style="bold")
            made = ask_one(self._answers, model, prompt, self.settings, style=style, on_text=_show)
            print(flush=True)
            out.print(counted(made), markup=False, style="dim")
            self.last.append(made)
            if made.finish == "stopped":
                return

    def _command(self, name: str, words: list[str]) -> None:
        match name, words:
            case "/set", [key, value]:
                self._set(key, value)
            case "/set", _:
                out.print(f"/set needs a name ({', '.join(LIMITS)}) and a value", markup=False)
            case "/compare", []:
                self._side_by_side()
            case "/models", []:
                self._list()
            case "/models", [_, _]:
                self._switch(words)
            case "/help", _:
                out.print(HELP, markup=False)
            case _:
                out.print(f"unknown command {' '.join([name, *words])!r}. /help lists the commands", markup=False)

    def _set(self, key: str, value: str) -> None:
        if key not in LIMITS:
            out.print(f"there is no setting {key!r}. Use {', '.join(LIMITS)}", markup=False)
            return
        try:
            number = LIMITS[key][0](value)
        except ValueError:
            kind = "a whole number" if LIMITS[key][0] is int else "a number"
            out.print(f"{key} {value!r} is not {kind}", markup=False)
            return
        if problem := allowed(key, number):
            out.print(f"{key} {problem}", markup=False)
            return
        changed: dict[str, Any] = {key: number}
        self.settings = replace(self.settings, **changed)
        out.print(f"{key} = {number}", markup=False)

    def _side_by_side(self) -> None:
        if not self.last:
            out.print("there is no answer yet. Type a prompt first", markup=False)
            return
        table = Table(*(escape(made.model) for made in self.last), expand=True, show_lines=True)
        table.add_row(*(Text(made.text) for made in self.last))
        table.add_row(*(Text(counted(made)) for made in self.last))
        out.print(table, soft_wrap=False)

    def _list(self) -> None:
        for one in self._found():
            mark = "*" if any(one.folder == model.folder for model in self.models) else " "
            out.print(f"{mark} {one.label}", markup=False)

    def _switch(self, words: Sequence[str]) -> None:
        try:
            self.models = [self._choose(word) for word in words]
        except ServiceError as error:
            out.print(str(error), markup=False)
            return
        self.last = []
        out.print(" and ".join(one.label for one in self.models), markup=False)


def ask_one(
    answers: Answers, model: Chosen, prompt: str, settings: Settings, *, style: str | None,
    on_text: Callable[[str], None] = lambda _: None,
) -> Answer:  # fmt: skip
    """Let one model answer."""
    return answers.ask(prompt, model=model.label, folder=model.folder, settings=settings, style=style, on_text=on_text)


def counted(made: Answer) -> str:
    """Return one line about an answer."""
    ended = {"length": ", cut at max_tokens", "stopped": ", stopped"}.get(made.finish, "")
    return f"{made.tokens} tokens, {made.seconds:.2f} s, {made.tokens_per_second:.1f} tokens/s{ended}"


def allowed(name: str, value: float) -> str | None:
    """Return what is wrong with a setting's value, or None."""
    _, low, high = LIMITS[name]
    if math.isfinite(value) and low <= value <= high:
        return None
    return f"{value:g} is not allowed. Use {low:g} to {high:g}"


def _read(lines: TextIO, terminal: bool) -> str | None:
    """Read a prompt or a command. None: there is no more. A Ctrl-C while typing drops the line."""
    whole: list[str] = []
    while True:
        try:
            if terminal:
                line = input("… " if whole else "> ")
            else:
                line = lines.readline()
                if not line:
                    return "\n".join(whole) if whole else None
                line = line.rstrip("\n")
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:
            print()
            whole = []
            continue
        if not line.endswith("\\"):
            return "\n".join([*whole, line])
        whole.append(line[:-1])


def _show(text: str) -> None:
    """Print a part of an answer. A model's control characters must not reach the terminal."""
    sys.stdout.write("".join(letter if letter.isprintable() or letter in "\n\t" else "\ufffd" for letter in text))
    sys.stdout.flush()
