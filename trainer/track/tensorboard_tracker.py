"""Writes TensorBoard's event files, with TensorBoard's own writer. (no torch)"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.track.prediction import Prediction


class TensorBoardBackend:
    """Curves as scalars, sample answers and other texts as text."""

    def __init__(self, folder: Path, *, purge_step: int | None = None) -> None:
        """
        Args:
            purge_step: of what an earlier start wrote, TensorBoard shows nothing from this step on. None: all of it
        """
        self._folder, self._purge_step = folder, purge_step
        self._writer: Any = None

    def open(self) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # slow to import: only in the tracker's thread
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(str(self._folder))
        if self._purge_step is not None:
            self._add(Event(session_log=SessionLog(status=SessionLog.START)), self._purge_step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        found = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(Event(summary=Summary(value=found)), step)

    def predictions(self, step: int, records: Sequence[Prediction]) -> None:
        for record in records:
            text = "\n\n".join(
                f"**{title}**\n\n{_as_code(content)}"
                for title, content in (
                    (f"prompt, at step {record.step} of the weights", record.prompt),
                    ("expected", record.expected),
                    ("answer", record.answer),
                )
            )
            self._add_text(f"predictions/{record.file_id}", text, step)

    def texts(self, step: int, values: Mapping[str, str]) -> None:
        for name, value in values.items():
            self._add_text(name, value, step)

    def artifact(self, **what: Any) -> None:
        """TensorBoard has nothing for files."""

    def close(self) -> None:
        self._writer.close()

    def abandon(self) -> None:
        """Nothing to do: nothing outlives the thread."""

    def _add_text(self, name: str, text: str, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
        from tensorboard.plugins.text.metadata import create_summary_metadata

        about = create_summary_metadata(display_name="", description="")
        shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
        tensor = TensorProto(dtype="DT_STRING", string_val=[text.encode(errors="replace")], tensor_shape=shape)
        value = Summary.Value(tag=f"{name}/text_summary", metadata=about, tensor=tensor)
        self._add(Event(summary=Summary(value=[value])), step)

    def _add(self, event: Any, step: int) -> None:
        event.wall_time, event.step = time.time(), step
        self._writer.add_event(event)


def _as_code(content: str) -> str:
    """Return Markdown that shows the text unchanged, even if it contains fences."""
    return "\n".join(f"    {line}" for line in content.splitlines())
