"""Structured log lines: one event a line, `time level message key=value …`, on stderr and in a rotated file."""

from __future__ import annotations

import json
import logging
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

LOG = logging.getLogger("codelupe")
MAX_LOG_BYTES = 10 * 1024 * 1024
KEPT_LOG_FILES = 5


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = getattr(record, "fields", {})
        pairs = "".join(f" {key}={_shown(value)}" for key, value in fields.items() if value is not None)
        line = f"{self.formatTime(record, '%Y-%m-%dT%H:%M:%S%z')} {record.levelname} {record.getMessage()}{pairs}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def _shown(value: Any) -> str:
    """A field's value on one line: numbers short, text quoted where a reader could not tell where it ends."""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if not text or set(text) & set(' "=\n\r\t') else text


def set_up(log_file: Path) -> None:
    """Send the service's log to stderr and to the rotated file."""
    LOG.setLevel(logging.INFO)
    LOG.propagate = False
    for handler in list(LOG.handlers):
        LOG.removeHandler(handler)
        handler.close()
    to_file = RotatingFileHandler(log_file, maxBytes=MAX_LOG_BYTES, backupCount=KEPT_LOG_FILES, encoding="utf-8")
    for handler in (logging.StreamHandler(), to_file):
        handler.setFormatter(_Lines())
        LOG.addHandler(handler)


def event(message: str, /, *, level: int = logging.INFO, **fields: Any) -> None:
    """Log one event with its fields."""
    LOG.log(level, message, extra={"fields": fields})
