"""Writes TensorBoard's event files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.track.prediction import Prediction


class TensorBoardBackend:
    """Curves as scalars, sample answers as text."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None

    def open(self) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import: only in the tracker's thread

        self._writer = SummaryWriter(str(self._folder))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def predictions(self, step: int, records: Sequence[Prediction]) -> None:
        for record in records:
            text = "\n\n".join(
                f"**{title}**\n\n{_as_code(content)}"
                for title, content in (
                    ("prompt", record.prompt),
                    ("expected", record.expected),
                    ("answer", record.answer),
                )
            )
            self._writer.add_text(f"predictions/{record.file_id}", text, step)

    def close(self) -> None:
        self._writer.close()

    def abandon(self) -> None:
        """Nothing to do: nothing outlives the thread."""


def _as_code(content: str) -> str:
    """Return Markdown that shows the text unchanged, even if it contains fences."""
    return "\n".join(f"    {line}" for line in content.splitlines())
