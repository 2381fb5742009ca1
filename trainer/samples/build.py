"""Sample builders by name, and the choice of a row's builder."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from trainer.conversations import turns_of
from trainer.errors import UnusableInput
from trainer.recipe import Data
from trainer.records import Row
from trainer.samples.chat import build_chat, chat_halves
from trainer.samples.chunks import build_chunks
from trainer.samples.commits import build_commits
from trainer.samples.fim import build_fim
from trainer.samples.instruction import build_instruction
from trainer.samples.items import build_items
from trainer.samples.plain import build_plain
from trainer.samples.rename import renamed
from trainer.samples.repo import build_repository, check_repo
from trainer.samples.sample import Rejected, Sample
from trainer.samples.syntax import unparsed_share

REPO, CHAT = "repo", "chat"


class Build(Protocol):
    """Makes the samples of a row, or raises Rejected. Deterministic for the same row, settings and seed."""

    def __call__(self, row: Row, data: Data, *, seed: int) -> Sequence[Sample]: ...


@dataclass(frozen=True, kw_only=True)
class Builder:
    """One way to make samples."""

    build: Build
    needs: tuple[str, ...]
    """Requirements on the tokenizer: control roles, and `chat` for a chat template."""
    halves: Callable[[Row], tuple[Row, Row] | None] | None = None
    """Cuts a row in two if a sample is too long. None: such a row is rejected."""
    whole: str = "too_long_line"
    """Why a part is rejected that is too long and cannot be cut."""
    rewrites: bool = True
    """Whether data.rename_fraction applies to the rows."""
    build_group: Callable[[Sequence[Row]], Sample] | None = None
    """Makes one sample of all rows of a repository. `build` then only rejects unsuitable rows."""


def halves(row: Row) -> tuple[Row, Row] | None:
    """Cut a row's text at the line boundary nearest to its middle. Returns None without such a boundary.

    Each part is a row of the same file. The metadata stay with the first part.
    """
    middle = len(row.content) // 2
    before = row.content.rfind("\n", 0, middle) + 1
    after = row.content.find("\n", middle) + 1
    cuts = [cut for cut in (before, after) if 0 < cut < len(row.content)]
    if not cuts:
        return None
    cut = min(cuts, key=lambda cut: abs(cut - middle))
    return replace(row, content=row.content[:cut]), replace(row, content=row.content[cut:], metadata={})


BUILDERS: dict[str, Builder] = {
    "instruction": Builder(build=build_instruction, needs=("chat",), halves=halves),
    "fim": Builder(build=build_fim, needs=("fim_prefix", "fim_suffix", "fim_middle", "fim_end"), halves=halves),
    "chunks": Builder(build=build_chunks, needs=("end",)),
    "items": Builder(build=build_items, needs=("end",)),
    "commits": Builder(build=build_commits, needs=("chat",), rewrites=False),
    CHAT: Builder(build=build_chat, needs=("chat",), halves=chat_halves, whole="too_long_turns", rewrites=False),
    REPO: Builder(build=check_repo, needs=("repo_name", "file_sep", "end"), build_group=build_repository),
}


TURNS: dict[str, Builder] = {
    "chat": BUILDERS[CHAT],
    "plain": replace(BUILDERS[CHAT], build=build_plain, needs=("end",)),
}
"""Builder of conversations, by data.turns."""


def check_builders(data: Data) -> None:
    """Raises UnusableInput if a recipe names an unknown builder."""
    if unknown := [name for name in data.builders if name not in BUILDERS]:
        raise UnusableInput(f"data.builders: {', '.join(unknown)} is not one of {', '.join(sorted(BUILDERS))}")


def needs(data: Data) -> dict[str, tuple[str, ...]]:
    """Return the tokenizer requirements of the recipe's builders."""
    return {name: (TURNS[data.turns] if name == CHAT else BUILDERS[name]).needs for name in data.builders}


def builder_of(row: Row, data: Data, *, seed: int) -> Builder:
    """Draw the row's builder by the recipe's weights. All parts of a row get the same builder.

    A conversation always gets the builder of data.turns, and no other row does. `repo` is drawn first, by repository,
    so that it gets all rows of a repository or none.
    """
    if turns_of(row.content, row.metadata) is not None:
        return TURNS[data.turns]
    weights = {name: weight for name, weight in sorted(data.builders.items()) if name != CHAT}
    if not weights:
        raise Rejected("no_conversation")
    repo = weights.get(REPO, 0.0)
    if repo and len(weights) > 1:
        share = repo / sum(weights.values())
        if row.repository and random.Random(f"{seed}:repo:{row.repository}").random() < share:
            return BUILDERS[REPO]
        del weights[REPO]
    draw = random.Random(f"{seed}:builder:{row.file_id}")
    (name,) = draw.choices(list(weights), weights=list(weights.values()))
    return BUILDERS[name]


def ready(row: Row, data: Data, *, seed: int) -> Row:
    """Return the row for its builder, with renamed variables if drawn.

    Raises:
        Rejected: `not_unicode` (a lone surrogate), `parse_failure` (data.largest_unparsed_share), `no_conversation`
            (the recipe has only the builder `chat`).
    """
    try:
        row.content.encode()
    except UnicodeEncodeError as error:
        raise Rejected("not_unicode") from error
    if turns_of(row.content, row.metadata) is not None:
        return row
    if unparsed_share(row.language, row.content, row.path) > data.largest_unparsed_share:
        raise Rejected("parse_failure")
    if data.rename_fraction and builder_of(row, data, seed=seed).rewrites:
        return renamed(row, fraction=data.rename_fraction, seed=seed)
    return row
