"""Rows of realistic source code in every language with a grammar, and of the standard library."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from run_folder import demo_rows, make_row

from trainer.records import Row

SOURCES = Path(__file__).parent / "sources"
LANGUAGES = {
    "py": "python", "rs": "rust", "go": "go", "js": "javascript", "ts": "typescript", "tsx": "typescript",
    "java": "java", "c": "c", "cpp": "cpp",
}  # fmt: skip


def source_row(name: str, *, file_id: int = 1) -> Row:
    """One file of tests/unit/sources."""
    language = LANGUAGES[name.rpartition(".")[2]]
    text = (SOURCES / name).read_text(encoding="utf-8")
    return replace(make_row(file_id, text, path=f"src/{name}"), language=language)


def source_rows() -> list[Row]:
    """Every file of tests/unit/sources."""
    names = sorted(path.name for path in SOURCES.iterdir() if path.is_file())
    return [source_row(name, file_id=number) for number, name in enumerate(names, 1001)]


def all_rows(library: int = 25) -> list[Row]:
    """Return these rows and some files of the standard library."""
    return [*source_rows(), *demo_rows(library)]
