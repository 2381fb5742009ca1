"""Which files the tiny base was pre-trained on: half of the interpreter's standard library. (no torch)

The other half is left for demonstrations and tests, so that what they train on and measure is new to the base.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path

LEFT_OUT = frozenset({"site-packages", "__pycache__"})
"""Folders that are no part of the library."""


def is_pretraining_file(path: str) -> bool:
    """Whether the tiny base has seen this file of the standard library.

    The rule, for whoever has to apply it elsewhere: the first byte of sha256(path) is even, where `path` is
    relative to the folder of the standard library, with forward slashes (`json/decoder.py`), in UTF-8.
    """
    return hashlib.sha256(path.encode()).digest()[0] % 2 == 0


def library_files() -> Iterator[tuple[str, str]]:
    """Path and text of every module of the running interpreter's standard library, by path."""
    root = Path(sysconfig.get_path("stdlib"))
    for file in sorted(root.rglob("*.py")):
        path = file.relative_to(root)
        if LEFT_OUT.isdisjoint(path.parts):
            try:
                text = file.read_text(encoding="utf-8")
            except UnicodeDecodeError:  # a few modules declare another encoding; left out of both halves
                continue
            yield path.as_posix(), text
