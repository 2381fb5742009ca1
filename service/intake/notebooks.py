"""Makes one source file of a Jupyter notebook: its code, with the Markdown between as comments. No outputs, no magics.

Raw cells are left out, and so are cells in another language than the kernel's (`%%bash`). Both versions of the format
are read: 4, and the older ones with worksheets.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

SUFFIX = ".ipynb"
LANGUAGES = {
    "c++": "cpp", "c#": "csharp", "f#": "fsharp", "ipython": "python", "python3": "python", "python2": "python",
    "sagemath": "sage", "shell": "bash", "sh": "bash", "pwsh": "powershell", "node": "javascript", "js": "javascript",
    "ir": "r", "octave": "matlab", "wolfram": "mathematica", "wolfram language": "mathematica", "sos": "python",
}  # fmt: skip
"""Our names of kernels' languages, where they differ."""
VERSION = re.compile(r"(?<=[a-z+#])[\d.]+\Z")
"""As in `C++17`."""

HASH = (
    "python",
    "r",
    "julia",
    "bash",
    "ruby",
    "perl",
    "sage",
    "powershell",
    "elixir",
    "nim",
    "tcl",
    "gnuplot",
    "coconut",
)
COMMENTS = (
    dict.fromkeys(HASH, "#")
    | dict.fromkeys(("haskell", "lua", "sql", "elm", "agda"), "--")
    | dict.fromkeys(("matlab", "prolog", "erlang", "tex"), "%")
    | dict.fromkeys(("clojure", "scheme", "racket", "lisp", "hy", "assembly"), ";;")
)
"""Comment prefix by language. The default is `//`."""

SAME_LANGUAGE = frozenset({"time", "timeit", "capture", "prun", "python", "python3", "py", "memit", "mprun", "lprun"})
"""Magics whose cell is code of the kernel."""
CELL_MAGIC = re.compile(r"\s*%%(\w+)")
PYTHON_MAGIC = re.compile(
    r"\s*(?:%{1,2}[a-zA-Z]|!{1,2}\s?[\w./$({~]|\?{1,2}[\w.]|[\w.%]+\?{1,2}\s*$|[\w., ]+=\s*(?:!\s?\w|%[a-zA-Z]))"
)
MAGICS: Mapping[str, re.Pattern[str]] = {
    "python": PYTHON_MAGIC,
    "sage": PYTHON_MAGIC,
    "julia": re.compile(r"[\];?]\s?\w"),
    "haskell": re.compile(r":\w"),
    "rust": re.compile(r":\w"),
    "csharp": re.compile(r"#!|#r\b|%\w"),
    "fsharp": re.compile(r"#!|#r\b|%\w"),
    **dict.fromkeys(("cpp", "c", "go", "java", "kotlin", "scala", "groovy"), re.compile(r"[%!?]{1,2}\w")),
}
"""A line that is a command to the kernel. Languages that are not here (R, bash, JavaScript) have none."""
DATA = re.compile(r"\((?:data:|attachment:)[^)\s]*\)|src=[\"']data:[^\"']*[\"']")
"""Pictures within Markdown."""


class BadNotebook(Exception):
    """A file that is no notebook, or has no code. The text says which."""


def source_of(text: str) -> tuple[str, str]:
    """Return a notebook's language and its source.

    Raises:
        BadNotebook: it is not one, or it has no code.
    """
    try:
        notebook = json.loads(text)
    except (ValueError, RecursionError):
        notebook = None
    if not isinstance(notebook, dict) or not isinstance(cells := _cells(notebook), list):
        raise BadNotebook("not a notebook")
    cells = [cell for cell in cells if isinstance(cell, dict)]
    spoken = _language(notebook, cells)
    code = 0
    parts = []
    for cell in cells:
        part = _part(cell, spoken)
        code += cell.get("cell_type") == "code" and part is not None
        parts += [part] if part else []
    if not code:
        raise BadNotebook("notebook has no code")
    return spoken, "\n\n".join(parts) + "\n"


def _cells(notebook: Mapping[str, Any]) -> Any:
    """Return the cells. Until format 3, they are in worksheets."""
    sheets = notebook.get("worksheets")
    if "cells" in notebook or not isinstance(sheets, list):
        return notebook.get("cells")
    return [cell for sheet in sheets if isinstance(sheet, dict) for cell in sheet.get("cells") or []]


def _language(notebook: Mapping[str, Any], cells: list[dict[str, Any]]) -> str:
    metadata = _mapping(notebook.get("metadata"))
    said, kernel = _mapping(metadata.get("language_info")), _mapping(metadata.get("kernelspec"))
    names = [said.get("name"), kernel.get("language"), *(cell.get("language") for cell in cells), kernel.get("name")]
    name = next((name for name in names if isinstance(name, str) and name.strip()), "python").strip().lower()
    name = VERSION.sub("", LANGUAGES.get(name, name))
    return LANGUAGES.get(name, name)


def _part(cell: Mapping[str, Any], spoken: str) -> str | None:
    """Return a cell as source text, or None if it is left out."""
    text = _text(cell.get("source", cell.get("input")))
    match cell.get("cell_type"):
        case "code":
            return _code(text, spoken) if _is_kernels(cell, spoken) else None
        case "markdown":
            return _comment(text, spoken)
        case "heading":  # format 3
            level = cell.get("level")
            return _comment(f"{'#' * (level if isinstance(level, int) else 1)} {text}", spoken)
    return None


def _text(source: Any) -> str:
    """Return a cell's text, which is a text or a list of lines."""
    if isinstance(source, list):
        source = "".join(line for line in source if isinstance(line, str))
    return source.replace("\r\n", "\n").replace("\r", "\n") if isinstance(source, str) else ""


def _is_kernels(cell: Mapping[str, Any], spoken: str) -> bool:
    """Whether a cell has the kernel's language. A notebook of several languages says it with each cell."""
    metadata = _mapping(cell.get("metadata"))
    names = (
        _mapping(metadata.get("vscode")).get("languageId"),
        _mapping(metadata.get("polyglot_notebook")).get("kernelName"),
        _mapping(metadata.get("dotnet_interactive")).get("language"),
    )
    said = next((name.lower() for name in names if isinstance(name, str)), spoken)
    return LANGUAGES.get(said, said) == spoken


def _code(text: str, spoken: str) -> str | None:
    magic = CELL_MAGIC.match(text)
    if magic is not None and spoken not in ("r", "matlab"):
        if magic.group(1) not in SAME_LANGUAGE:
            return None
        text = text[magic.start() :].lstrip().partition("\n")[2]
    pattern = MAGICS.get(spoken)
    if pattern is not None and not (spoken == "python" and _parses(text)):
        text = "\n".join(_without_magics(text, pattern, block="pass" if spoken == "python" else ""))
    return text.strip("\n").rstrip() if text.strip() else None


def _without_magics(text: str, pattern: re.Pattern[str], *, block: str) -> Iterator[str]:
    """Yield the lines that are no commands. Within a block, a statement stands for a command."""
    is_continued = False
    for line in text.split("\n"):
        if is_continued or pattern.match(line):
            indent = line[: len(line) - len(line.lstrip())]
            if block and indent and not is_continued:
                yield indent + block
            is_continued = line.endswith("\\")
        else:
            yield line


def _parses(text: str) -> bool:
    """Whether a text is Python as it is. Then a line such as `%d items` is part of a string."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _comment(text: str, spoken: str) -> str | None:
    prefix = COMMENTS.get(spoken, "//")
    lines = DATA.sub("()", text).strip().split("\n")
    return "\n".join(f"{prefix} {line}".rstrip() for line in lines) if text.strip() else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
