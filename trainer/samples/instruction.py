"""Builder `instruction`: the prompt has a file's first lines, and the assistant writes the rest."""

from __future__ import annotations

import math
import random
import re

from trainer.recipe import Data
from trainer.records import Row
from trainer.samples.facts import fact_block
from trainer.samples.sample import Chat, Message, Rejected
from trainer.samples.spoken import spoken
from trainer.samples.syntax import parse

SYSTEM = (
    "You are Qwen, an AI coding assistant created by Alibaba Cloud.\n"
    "You provide accurate, efficient, and well-documented code."
)

INSTRUCTIONS = (
    "Complete the following {language} code:",
    "Implement the {language} function:",
    "Write {language} code to solve this:",
    "Generate {language} code for:",
    "Create a {language} implementation:",
    "Develop {language} code that:",
)

BACKTICKS = re.compile("`{3,}")


def build_instruction(row: Row, data: Data, *, seed: int) -> list[Chat]:
    """Make one chat of a row, deterministic by row and seed.

    Prompt and answer together hold all lines. Only "\\n" separates lines. If the text parses, the answer begins with a
    statement within the configured range, if there is one. Otherwise it begins with any line.

    Raises:
        Rejected: `empty` (only whitespace), `too_few_lines` (no line is left for the assistant).
    """
    if not row.content.strip():
        raise Rejected("empty")
    lines = row.content.split("\n")
    if lines[-1] == "":
        lines.pop()
    draw = random.Random(f"{seed}:{row.file_id}")
    fraction = draw.uniform(data.context_fraction_low, data.context_fraction_high)
    instruction = draw.choice(INSTRUCTIONS).format(language=spoken(row.language))
    shown = _at_boundary(row, data, len(lines), max(data.min_context_lines, round(len(lines) * fraction)))
    if shown >= len(lines) or not "".join(lines[shown:]).strip():
        raise Rejected("too_few_lines")
    fence, facts = fence_for(row.content), fact_block(row, data)
    context, rest = "\n".join(lines[:shown]), "\n".join(lines[shown:])
    messages = (
        Message(role="system", text=SYSTEM),
        Message(
            role="user",
            text=f"{instruction}\n\n{fence}{row.language.lower()}\n{context}\n{fence}",
            facts=f"{facts}\n" if facts else "",
        ),
        Message(role="assistant", text=f"{fence}{row.language.lower()}\n{rest}\n{fence}", supervised=True),
    )
    return [Chat(file_id=row.file_id, kind="instruction", messages=messages)]


def _at_boundary(row: Row, data: Data, lines: int, shown: int) -> int:
    """Return the number of lines to show: the allowed statement boundary nearest to the drawn one."""
    low = max(data.min_context_lines, math.ceil(lines * data.context_fraction_low))
    high = math.floor(lines * data.context_fraction_high)
    source = parse(row.language, row.content, row.path) if low <= high else None
    boundaries = source.boundary_lines(low, high) if source is not None else []
    return min(boundaries, key=lambda line: abs(line - shown), default=shown)


def fence_for(content: str) -> str:
    """Three backticks, or one more than the longest run of three or more in the content."""
    longest = max((len(run) for run in BACKTICKS.findall(content)), default=2)
    return "`" * (longest + 1)
