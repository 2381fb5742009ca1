"""The results of one or several calls: JSON lines next to the page, written again after each answer.

Each call adds a line of the part `card`, with its options and the matrix rate that it measured. Of every other part
there is one line, the latest, which names its call.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from report import lines_of_page

Facts = dict[str, Any]
SAME = ("name", "torch", "tiny", "layers", "vram_gib")
"""What the calls of one page must have in common."""


class Mismatch(Exception):
    """Results that do not belong on the same page."""


class Results:
    """All that is known so far."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.calls: dict[str, Facts] = {}
        self.parts: dict[str, Facts] = {}

    def add_file(self, path: Path) -> None:
        """Add the lines of a file. Parts in it replace those that are here.

        Raises:
            Mismatch: it is not a file of this benchmark, or from another card, torch, model or limit.
        """
        try:
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
            for facts in sorted(lines, key=lambda facts: facts["part"] != "card"):
                self.add_call(facts, path) if facts["part"] == "card" else self.add(facts)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise Mismatch(
                f"{path} cannot be read as results of this version ({type(error).__name__}: {error}). It stays: "
                "choose another --out"
            ) from error

    def add_call(self, card: Facts, origin: object = "this call") -> None:
        """Add a call's line. Raises Mismatch if it does not fit the calls that are here."""
        for other in self.calls.values():
            for key in SAME:
                if card[key] != other[key]:
                    raise Mismatch(
                        f"{self.target.with_suffix('.jsonl')} has results with {key} {other[key]}, and {origin} has "
                        f"{card[key]}. They do not belong on one page: choose another --out"
                    )
        self.calls[card["call"]] = card

    def add(self, facts: Facts) -> None:
        """Add or replace a part. One that was not run leaves what an earlier call measured."""
        if "not_run" in facts and facts["part"] in self.parts:
            return
        self.parts.pop(facts["part"], None)
        self.parts[facts["part"]] = facts

    def write(self) -> None:
        """Write both files. Each is replaced whole, so a process that is killed leaves the earlier state."""
        named = {facts["call"] for facts in self.parts.values()}
        latest = list(self.calls)[-1:]
        calls = {key: card for key, card in self.calls.items() if key in named or key in latest}
        lines = [*calls.values(), *self.parts.values()]
        _replace(self.target.with_suffix(".jsonl"), "".join(json.dumps(facts) + "\n" for facts in lines))
        _replace(self.target, "\n".join(lines_of_page(list(calls.values()), self.parts)) + "\n")


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
