"""Logging: one event per line, as text or JSON, on stderr and in a rotated file. Startup stages go to stdout."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TextIO

from service import stdio
from service.visible import visible

LOG = logging.getLogger("codelupe")
MAX_LOG_BYTES = 10 * 1024 * 1024
KEPT_LOG_FILES = 5


class PrintProgress(Protocol):
    """Prints one stage of `up` to stdout."""

    def __call__(self, stage: str, text: str, /, **fields: Any) -> None: ...


class _Stderr(logging.StreamHandler[TextIO]):
    """Events on stderr, whatever stands for it at the moment. If its reader has gone, the log file still gets them."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr

    def handleError(self, record: logging.LogRecord) -> None:
        if isinstance(sys.exception(), OSError):
            stdio.give_up(self.stream)
        else:
            super().handleError(record)


class _LogFile(RotatingFileHandler):
    """A log file that opens anew what logrotate has moved, and reports a write error (such as a full disk) once.

    The base class writes on into a file that was renamed, and prints a traceback to stderr at every error.
    """

    _reported = False

    def emit(self, record: logging.LogRecord) -> None:
        if self.stream is not None and not self._leads_to(self.stream):
            self.stream.close()
            self.stream = None  # the base class opens it
        super().emit(record)

    def _leads_to(self, opened: TextIO) -> bool:
        """Whether the path still leads to the open file."""
        try:
            return os.path.samestat(Path(self.baseFilename).stat(), os.fstat(opened.fileno()))
        except OSError:
            return False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self._reported:
            self._reported = True  # set first: the event below comes here too
            reason = str(sys.exception())
            event("Cannot write to the log file", level=logging.WARNING, file=self.baseFilename, reason=reason)


class _TextLines(logging.Formatter):
    """`time level message key=value …`"""

    def format(self, record: logging.LogRecord) -> str:
        pairs = "".join(f" {key}={_shown(value)}" for key, value in _fields(record).items() if value is not None)
        said = visible(record.getMessage())
        line = f"{self.formatTime(record, '%Y-%m-%dT%H:%M:%S%z')} {record.levelname} {said}{pairs}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class _JsonLines(logging.Formatter):
    """One JSON object per line: time, level, message, the event's fields, and a traceback as `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        exception = {"exception": self.formatException(record.exc_info)} if record.exc_info else {}
        return json_object(record.created, record.levelname, record.getMessage(), _fields(record), **exception)


def _fields(record: logging.LogRecord) -> Mapping[str, Any]:
    fields: Mapping[str, Any] = getattr(record, "fields", {})
    return fields


def _shown(value: Any) -> str:
    """Format a field's value on one line. Numbers are short; ambiguous text is quoted."""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = visible(str(value))
    return json.dumps(text, ensure_ascii=False) if not text or set(text) & set(' "=\n\r\t') else text


def json_object(created: float, level: str, message: str, fields: Mapping[str, Any], **more: str) -> str:
    """One line of strict JSON. `created` is in seconds since 1970.

    Fields whose names collide with ours get the prefix `field_`. NaN and infinity become strings.
    """
    line: dict[str, Any] = {
        "time": datetime.fromtimestamp(created, UTC).astimezone().isoformat(timespec="milliseconds"),
        "level": level,
        "message": message,
        **more,
    }
    taken = {"time", "level", "message", "exception"}
    for name, value in fields.items():
        line[f"field_{name}" if name in taken else name] = _plain(value)
    return json.dumps(line, allow_nan=False)  # ASCII, because paths may hold bytes that are not UTF-8


def _plain(value: Any) -> Any:
    """Convert a value to what JSON can represent."""
    match value:
        case bool() | int() | str() | None:
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case datetime():
            return value.isoformat()
        case Mapping():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_plain(item) for item in value]
    return str(value)


# --- the two formats -------------------------------------------------------------------------------------------


def print_line(line: str) -> None:
    """Print a line to stdout. If its reader has gone, say so once in the log, and go on: a service runs for months."""
    try:
        sys.stdout.write(f"{visible(line)}\n")
        sys.stdout.flush()
    except OSError as error:
        stdio.give_up(sys.stdout)
        event("Cannot print to stdout any more", level=logging.WARNING, reason=str(error))


def _print_text(stage: str, text: str, /, **fields: Any) -> None:
    took = f" ({fields['seconds']:.1f} s)" if "seconds" in fields else ""
    print_line(f"· {stage:<12} {text}".rstrip() + took)


def _print_json(stage: str, text: str, /, **fields: Any) -> None:
    now = datetime.now(UTC).timestamp()
    print_line(json_object(now, "INFO", stage, {"text": text, **fields}))


FORMATS: dict[str, tuple[type[logging.Formatter], PrintProgress]] = {
    "text": (_TextLines, _print_text),
    "json": (_JsonLines, _print_json),
}
"""Maps LOG_FORMAT to the formatter of events and the printer of stages."""


def set_up(log_format: str, log_file: Path | None = None) -> None:
    """Send logs and library warnings to stderr and, if given, to the rotated file."""
    handlers: list[logging.Handler] = [_Stderr()]
    if log_file is not None:
        handlers.append(
            _LogFile(
                log_file,
                maxBytes=MAX_LOG_BYTES,
                backupCount=KEPT_LOG_FILES,
                encoding="utf-8",
                errors="backslashreplace",
            )
        )
    formatter = FORMATS[log_format][0]()
    LOG.propagate = False
    LOG.setLevel(logging.INFO)
    for logger in (LOG, logging.getLogger()):
        for old in [handler for handler in logger.handlers if handler.get_name() == LOG.name]:
            logger.removeHandler(old)
            old.close()
        for handler in handlers:
            handler.set_name(LOG.name)
            handler.setFormatter(formatter)
            logger.addHandler(handler)
    logging.captureWarnings(True)
    if log_format == "json":
        sys.excepthook = _log_uncaught
        threading.excepthook = _log_thrown
        sys.unraisablehook = _log_thrown


def _log_thrown(thrown: threading.ExceptHookArgs | sys.UnraisableHookArgs) -> None:
    """Log an exception from a thread or a destructor."""
    _log_uncaught(thrown.exc_type, thrown.exc_value or thrown.exc_type(), thrown.exc_traceback)


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Log an uncaught exception as one event instead of many lines."""
    LOG.critical("Uncaught exception", exc_info=(kind, error, trace))


def event(message: str, /, *, level: int = logging.INFO, **fields: Any) -> None:
    """Log one event with its fields."""
    LOG.log(level, message, extra={"fields": fields})


def progress_printer(log_format: str) -> PrintProgress:
    """Return the function that prints the stages of `up`."""
    return FORMATS[log_format][1]
