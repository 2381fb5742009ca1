"""The samples stage: tokenizes rows in a thread while the model is loaded.

Both hold Python's global lock part of the time. With the tiny model and 114 rows this saves nothing. With 1,026 rows it
took 3.4 s instead of 4.1 s on two cores (best of four each).
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trainer.check import Checked
from trainer.data.encoder import SampleEncoder
from trainer.data.tokenize import TokenRows, tokenize_rows
from trainer.errors import UnusableInput
from trainer.evaluate.parts import divide_held_out
from trainer.events import Events
from trainer.model.load import load_tokenizer
from trainer.outcomes import Inputs
from trainer.recipe import Data
from trainer.records import Row, read_rows
from trainer.run_dir import RunDirectory, RunDirectoryError
from trainer.samples.build import needs


class _NotNeeded(Exception):
    """The samples are no longer needed."""


@dataclass(frozen=True)
class Reading:
    """Result of the thread. Both methods wait, and raise the thread's exception."""

    _measured: Future[bool] = field(default_factory=Future)
    _read: Future[tuple[Any, Inputs]] = field(default_factory=Future)

    def measured(self) -> bool:
        """Whether a held-out row gave a sample. This is known early: without one, no model is needed."""
        return self._measured.result()

    def inputs(self) -> tuple[Any, Inputs]:
        """Return the tokenizer, and the samples of the three files.

        Raises:
            UnusableInput: the tokenizer cannot be loaded, a row cannot be read, or a file_id occurs twice.
        """
        return self._read.result()


@contextmanager
def reading(directory: RunDirectory, checked: Checked, events: Events) -> Iterator[Reading]:
    """Read a run's rows while the block runs. If the block ends early, reading stops within a few rows."""
    result, left = Reading(), threading.Event()

    def read() -> None:
        try:
            with events.stage("samples"):
                everything = _read(directory, checked, result, left, events)
            result._read.set_result(everything)
        except BaseException as error:  # noqa: BLE001  (handed to whoever waits)
            for future in (result._measured, result._read):
                if not future.done():
                    future.set_exception(error)

    thread = threading.Thread(target=read, name="samples", daemon=True)
    thread.start()
    try:
        yield result
    finally:
        left.set()
        thread.join()


def _read(
    directory: RunDirectory, checked: Checked, result: Reading, left: threading.Event, events: Events
) -> tuple[Any, Inputs]:
    """Tokenize the three files, held-out rows first."""
    tokenizer = load_tokenizer(checked.recipe.base)
    encoder, data = SampleEncoder(tokenizer), checked.recipe.data
    encoder.check(needs(data))

    counts = {path: _count(path) for path in (directory.held_out, directory.rows, directory.replay)}
    before = 0

    def tokens(path: Path, data: Data = data) -> TokenRows:
        nonlocal before
        made = tokenize_rows(
            _rows(path, left), encoder, data, seed=checked.seed,
            on_rows=lambda done: events.progress("samples", before + done, sum(counts.values())),
        )  # fmt: skip
        before += counts[path]
        return made

    try:
        held_out = tokens(directory.held_out, replace(data, rename_fraction=0.0))  # do not rename held-out code
        result._measured.set_result(bool(held_out.samples))
        rows, replay = tokens(directory.rows), tokens(directory.replay)
    except RunDirectoryError as error:
        raise UnusableInput(str(error)) from error
    _check_distinct([*rows.file_ids, *replay.file_ids, *held_out.file_ids])
    parts = divide_held_out(
        held_out,
        judging_tokens=data.max_eval_tokens,
        stopping_tokens=data.max_stopping_tokens,
        trunk=checked.trunk,
        seed=checked.seed,
    )
    return tokenizer, Inputs(rows=rows, replay=replay, held_out=held_out, parts=parts)


def _rows(path: Path, left: threading.Event) -> Iterator[Row]:
    for row in read_rows(path):
        if left.is_set():
            raise _NotNeeded
        yield row


def _count(path: Path) -> int:
    """Count the rows of a file, for the progress. A missing file has none; whoever reads it reports what is wrong."""
    try:
        with path.open("rb") as file:
            return sum(1 for _ in file)
    except OSError:
        return 0


def _check_distinct(file_ids: list[int]) -> None:
    if twice := [str(file_id) for file_id, times in Counter(file_ids).items() if times > 1]:
        raise UnusableInput(f"file_id {', '.join(twice[:10])} occurs more than once in the run's rows")
