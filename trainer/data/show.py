"""`python -m trainer samples RECIPE.yaml ROWS.jsonl`: shows samples and their loss.

The text is decoded from the ids, so it is exactly what is trained. Terminal control characters are escaped.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainer.data.encoder import IGNORED, SampleEncoder, TokenSample
from trainer.data.tokenize import TokenRows, tokenize_rows
from trainer.errors import UnusableInput
from trainer.model.load import load_tokenizer
from trainer.recipe import Recipe
from trainer.records import Row, read_rows
from trainer.run_dir import RunDirectoryError
from trainer.samples.build import check_builders, needs

CONTEXT, LEARNED, CONTROL, LEARNED_CONTROL = "", "\x1b[32m", "\x1b[36m", "\x1b[1;32m"
HEAD, PLAIN = "\x1b[1m", "\x1b[0m"
STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
LEGEND = {
    True: f"{LEARNED}learned{PLAIN}, {CONTROL}<|control|>{PLAIN}, {LEARNED_CONTROL}<|learned control|>{PLAIN}, context",
    False: "«learned», ⟦<|control|>⟧, context",
}


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Consecutive tokens of the same type."""

    text: str
    learned: bool
    """Whether they have loss."""
    control: bool
    """Whether they are real control tokens, not text that looks like one."""


def samples_command(
    recipe: Recipe, rows_file: Path, *, builder: str | None, limit: int, seed: int | None, as_json: bool, colour: bool
) -> int:
    """Print the samples of a rows file.

    Args:
        builder: use only this builder, and ignore the recipe's weights
        limit: maximum number of samples to print

    Raises:
        UnusableInput: unreadable rows, an unknown builder, or a tokenizer without the required tokens.
    """
    if builder is not None:
        recipe = replace(recipe, data=replace(recipe.data, builders={builder: 1.0}))
    check_builders(recipe.data)
    rows = _read(rows_file)
    encoder = SampleEncoder(load_tokenizer(recipe.base))
    encoder.check(needs(recipe.data))
    made = tokenize_rows(rows, encoder, recipe.data, seed=recipe.training.seed if seed is None else seed)
    by_id = {row.file_id: row for row in rows}
    shown = made.samples[:limit]
    if as_json:
        sys.stdout.write(json.dumps(_facts(made, shown, encoder, by_id), indent=1, ensure_ascii=False) + "\n")
    else:
        lines = itertools.chain([LEGEND[colour], ""], _report(made, shown, encoder, by_id, colour=colour))
        sys.stdout.write("\n".join(lines) + "\n")
    return 0


def segments(sample: TokenSample, encoder: SampleEncoder) -> Iterator[Segment]:
    """Yield the sample's text in segments of one type. Each control token is its own segment."""
    marked = (
        (token, label != IGNORED, token in encoder.added, number)
        for number, (token, label) in enumerate(zip(sample.ids.tolist(), sample.labels.tolist(), strict=True))
    )
    for (learned, control, _), group in itertools.groupby(marked, key=lambda t: (t[1], t[2], t[3] if t[2] else 0)):
        text = encoder.tokenizer.decode([token for token, *_ in group])
        yield Segment(text=text, learned=learned, control=control)


def _read(path: Path) -> list[Row]:
    if not path.is_file():
        raise UnusableInput(f"{path} is not a rows file (such as rows.jsonl of a run directory)")
    try:
        rows = list(read_rows(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UnusableInput(f"{path} cannot be read: {error}") from error
    except RunDirectoryError as error:
        raise UnusableInput(str(error)) from error
    if not rows:
        raise UnusableInput(f"{path} holds no rows")
    return rows


def _report(
    made: TokenRows, shown: Sequence[TokenSample], encoder: SampleEncoder, rows: dict[int, Row], *, colour: bool
) -> Iterator[str]:
    for number, sample in enumerate(shown, 1):
        share = sample.supervised / sample.tokens
        names = ", ".join(_name(rows[file_id]) for file_id, _ in sample.shares)
        head = (
            f"── {number} · {sample.kind} · {names} · {sample.tokens} tokens, {sample.supervised} learned ({share:.0%})"
        )
        yield f"{HEAD}{head}{PLAIN}" if colour else head
        yield "".join(_coloured(segment) if colour else _marked(segment) for segment in segments(sample, encoder))
        yield ""
    for file_id, reason in made.rejected.items():
        yield f"{_name(rows[file_id])}: no sample ({reason})"
    kinds = Counter(sample.kind for sample in made.samples)
    counts = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items())) or "none"
    tokens = sum(sample.tokens for sample in made.samples)
    yield f"{len(made.samples)} samples of {len(rows)} rows ({counts}), {tokens} tokens" + (
        f"; the first {len(shown)} are shown" if len(shown) < len(made.samples) else ""
    )


def _facts(
    made: TokenRows, shown: Sequence[TokenSample], encoder: SampleEncoder, rows: dict[int, Row]
) -> dict[str, Any]:
    return {
        "samples": [
            {
                "kind": sample.kind,
                "rows": [{"path": rows[file_id].path, "tokens": tokens} for file_id, tokens in sample.shares],
                "tokens": sample.tokens,
                "learned": sample.supervised,
                "segments": [
                    {"text": segment.text, "learned": segment.learned, "control": segment.control}
                    for segment in segments(sample, encoder)
                ],
            }
            for sample in shown
        ],
        "samples_total": len(made.samples),
        "rejected": [{"path": rows[file_id].path, "reason": reason} for file_id, reason in made.rejected.items()],
    }


def _coloured(segment: Segment) -> str:
    paint = {
        (False, False): CONTEXT,
        (True, False): LEARNED,
        (False, True): CONTROL,
        (True, True): LEARNED_CONTROL,
    }[segment.learned, segment.control]
    text = _harmless(segment.text)
    # colour each line by itself, so that a pager can start at any line
    return "\n".join(f"{paint}{line}{PLAIN}" if paint and line else line for line in text.split("\n"))


def _marked(segment: Segment) -> str:
    text = f"⟦{segment.text}⟧" if segment.control else segment.text
    return _harmless(f"«{text}»" if segment.learned else text)


def _harmless(text: str) -> str:
    return STEERING.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def _name(row: Row) -> str:
    return _harmless(row.path or f"row {row.file_id}").replace("\n", "\\n")
