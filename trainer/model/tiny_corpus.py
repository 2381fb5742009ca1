"""Lists the files that the tiny base was pre-trained on: half of the standard library. (no torch)

The other half is reserved for demos and tests, so that its files are new to the base.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path

LEFT_OUT = frozenset({"site-packages", "__pycache__"})
"""Folders that do not belong to the library."""


def is_pretraining_file(path: str) -> bool:
    """Whether the tiny base has seen this file of the standard library.

    Rule: the first byte of sha256(path) is even, where `path` is
    relative to the folder of the standard library, with forward slashes (`json/decoder.py`), in UTF-8.
    """
    return hashlib.sha256(path.encode()).digest()[0] % 2 == 0


def library_files() -> Iterator[tuple[str, str]]:
    """Yield path and text of every standard library module, sorted by path."""
    root = Path(sysconfig.get_path("stdlib"))
    for file in sorted(root.rglob("*.py")):
        path = file.relative_to(root)
        if LEFT_OUT.isdisjoint(path.parts):
            try:
                text = file.read_text(encoding="utf-8")
            except UnicodeDecodeError:  # a few modules declare another encoding; skip them
                continue
            yield path.as_posix(), text
