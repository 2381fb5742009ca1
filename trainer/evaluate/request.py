"""What `python -m trainer evaluate` is asked for, and its arguments. (no torch)"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import UnusableInput
from trainer.evaluate.engines import ENGINES, Sampling
from trainer.evaluate.prompts import STYLES

SPLITS = ("few_shot", "test", "validation", "train", "all")
ROW_SUITES = ("held-out", "fim")


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """What to evaluate and how."""

    recipe: Path
    to: Path
    """Folder of the results: new, or one of the same settings to go on with."""
    suite: str
    """`held-out`, `fim`, or another name for the benchmark in `file`."""
    file: Path
    """A benchmark, or the held-out rows as held_out.jsonl of a run directory."""
    adapter: Path | None
    current: Path | None
    split: str | None
    max_samples: int | None
    """Only the first tasks or rows."""
    samples_per_task: int
    sampling: Sampling
    style: str | None
    """`chat` or `completion`. None: chat, if the tokenizer has a chat template."""
    engine: str
    url: str | None
    served_name: str | None
    batch_size: int
    execute: bool
    against: Path | None
    """Results to compare with."""
    progress: Path | None = None
    """File that events about the progress are appended to, as in events.jsonl. None: stderr says it now and then."""

    def __post_init__(self) -> None:
        if self.sampling.temperature == 0 and self.samples_per_task > 1:
            raise UnusableInput(
                f"--samples-per-task {self.samples_per_task} needs --temperature above 0: without it, all samples of "
                "a task are the same"
            )
        if self.suite == "held-out" and self.engine != "transformers":
            raise UnusableInput(f"--suite held-out measures losses, which the engine {self.engine} does not give")
        if self.suite == "held-out" and self.against is not None:
            raise UnusableInput("--against: the suite held-out already compares with the current adapter and the base")
        if self.against is not None and not self.execute and self.suite not in ROW_SUITES:
            raise UnusableInput("--against compares verdicts. Add --execute, which gives them")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `evaluate`."""
    parser.add_argument("recipe", type=Path)
    parser.add_argument("to", type=Path, help="folder of the results; the same command goes on where it stopped")
    parser.add_argument("--suite", required=True, help="held-out, fim, or any name for the benchmark in --file")
    parser.add_argument("--file", type=Path, required=True, help="benchmark, or held-out rows (held_out.jsonl)")
    parser.add_argument("--adapter", type=Path, help="adapter folder (default: the base alone)")
    parser.add_argument("--current", type=Path, help="folder of the current adapter, for held-out")
    parser.add_argument("--split", choices=SPLITS, help="of MBPP (default: test)")
    parser.add_argument("--max-samples", type=_positive, help="only the first N tasks or rows")
    parser.add_argument("--samples-per-task", type=_positive, default=1)
    parser.add_argument("--temperature", type=float, default=0.0, help="0: the likeliest token each time")
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--max-tokens", type=_positive, default=512)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--style", choices=STYLES, help="default: chat if the tokenizer has a chat template")
    parser.add_argument("--engine", choices=[*ENGINES], default="transformers")
    parser.add_argument("--url", help="address of the server, for --engine openai")
    parser.add_argument("--served-name", help="the model's name on the server")
    parser.add_argument("--batch-size", type=_positive, default=16, help="answers in a batch, or calls at once")
    parser.add_argument("--execute", action="store_true", help="run the tests on the answers, in the sandbox")
    parser.add_argument("--against", type=Path, help="results to compare with")
    parser.add_argument("--progress", type=Path, help="append events about the progress to this file")


def request_from(chosen: argparse.Namespace) -> EvaluationRequest:
    """Return the request of parsed arguments.

    Raises:
        UnusableInput: arguments contradict each other.
    """
    if not 0 <= chosen.temperature <= 100 or not 0 < chosen.top_p <= 1:
        raise UnusableInput(
            f"--temperature {chosen.temperature:g} must be from 0 to 100, and --top-p {chosen.top_p:g} above 0, up to 1"
        )
    return EvaluationRequest(
        recipe=chosen.recipe,
        to=chosen.to,
        suite=chosen.suite,
        file=chosen.file,
        adapter=None if chosen.adapter is None else chosen.adapter.resolve(),
        current=None if chosen.current is None else chosen.current.resolve(),
        split=chosen.split,
        max_samples=chosen.max_samples,
        samples_per_task=chosen.samples_per_task,
        sampling=Sampling(
            temperature=chosen.temperature, top_p=chosen.top_p, max_tokens=chosen.max_tokens, seed=chosen.seed
        ),
        style=chosen.style,
        engine=chosen.engine,
        url=chosen.url,
        served_name=chosen.served_name,
        batch_size=chosen.batch_size,
        execute=chosen.execute,
        against=chosen.against,
        progress=chosen.progress,
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value
