"""Reads the bytes of a source file as its language and its text, or says why it is passed over."""

from __future__ import annotations

from service.intake.decoding import decoded
from service.intake.fields import is_storable
from service.intake.formats import Skipped
from service.intake.languages import language, may_be_source
from service.intake.notebooks import SUFFIX, BadNotebook, source_of
from service.source_files import pointer

UNKNOWN = "not a known language"


def is_notebook(name: str) -> bool:
    return name.lower().endswith(SUFFIX)


def can_be_source(name: str) -> bool | None:
    """Whether to read a file with this name. None: only its text can tell."""
    return True if is_notebook(name) else may_be_source(name)


def source_text(name: str, data: bytes) -> tuple[str, str] | Skipped:
    """Return the language and the text of a file, or why it is passed over."""
    try:
        text = decoded(data)
    except UnicodeDecodeError:
        return "not UTF-8"
    if (other := pointer(text)) is not None:
        return other
    spoken: str | None
    try:
        spoken, text = source_of(text) if is_notebook(name) else (language(name, text), text)
    except BadNotebook as error:
        return str(error)
    if spoken is None:
        return UNKNOWN
    return (spoken, text) if is_storable(text) else "not text"
