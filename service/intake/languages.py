"""Detects a file's language by its name, then by its text. The tables are GitHub linguist's (linguist/generate.py)."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path, PurePosixPath

from service.intake.linguist.ours import OURS

_TABLE = json.loads(Path(__file__).parent.joinpath("linguist", "languages.json").read_text(encoding="utf-8"))
EXTENSIONS: dict[str, tuple[str, ...]] = {name: tuple(spoken) for name, spoken in _TABLE["extensions"].items()}
"""Languages by extension. An empty name is a language that is not taken, such as JSON."""
FILENAMES: dict[str, str] = _TABLE["filenames"]
INTERPRETERS: dict[str, str] = _TABLE["interpreters"]

LOWER_NAMES = {"makefile": "makefile", "dockerfile": "dockerfile", "cmakelists.txt": "cmake", "rakefile": "ruby"}
"""File names that count in any case."""
VARIANTS = frozenset({
    "Dockerfile", "Containerfile", "Makefile", "GNUmakefile", "Jenkinsfile", "Vagrantfile", "Rakefile", "Gemfile",
    "Fastfile", "Podfile", "Earthfile", "Tiltfile", "Justfile", "Caddyfile",
})  # fmt: skip
"""File names that may have an ending of their own, as in Dockerfile.dev."""
NO_VARIANTS = frozenset({".lock", ".bak", ".orig", ".rej", ".old", ".swp", ".tmp", ".log"})
USUAL = {
    ".h": "c", ".hh": "cpp", ".pl": "perl", ".pm": "perl", ".t": "perl", ".m": "objective-c", ".r": "r", ".v":
    "verilog", ".fs": "fsharp", ".ts": "typescript", ".tsx": "typescript", ".sql": "sql", ".ddl": "sql", ".rs":
    "rust", ".cs": "csharp", ".php": "php", ".html": "html", ".ml": "ocaml", ".ex": "elixir", ".sol": "solidity",
    ".mm": "objective-cpp", ".f": "fortran", ".for": "fortran", ".pp": "puppet", ".cl": "lisp", ".lisp":
    "lisp", ".l": "lex", ".as": "actionscript", ".asm": "assembly", ".sc": "scala", ".cue": "cue", ".vb": "vbnet",
    ".bas": "basic", ".re": "reason", ".frag": "glsl", ".shader": "shaderlab", ".nas": "assembly", ".cls": "apex",
    ".jq": "jq", ".lean": "lean4", ".mo": "modelica", ".n": "nemerle", ".al": "al", ".nu": "nushell", ".typ":
    "typst", ".e": "eiffel", ".gd": "gdscript", ".es": "javascript", ".q": "q", ".sls": "salt",
}  # fmt: skip
"""The language of an extension that several have, if its text does not tell. Without one, the file is not taken."""
MOST_CHARS, LONGEST_LINE = 8_000, 400
"""How much of a text the patterns look at. The time of some grows with the square of it."""

SHEBANG = re.compile(r"#!\s*\S*?/?(?:env(?:\s+-\S+)*(?:\s+\w+=\S*)*\s+)?([A-Za-z][\w-]*?)[\d.]*(?:\s|$)")
SAID: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("php", re.compile(r"\A\s*<\?php\b")),
    ("html", re.compile(r"\A\s*<(?:!doctype html|html)\b", re.IGNORECASE)),
    ("go", re.compile(r"^package \w+\s*$.*^(?:func|import|type)\b", re.MULTILINE | re.DOTALL)),
    ("rust", re.compile(r"^(?:pub )?(?:fn \w+.*\{|use \w+::|impl\b.*\{)", re.MULTILINE)),
    ("java", re.compile(r"^(?:import java\.|public (?:final )?(?:class|interface) \w+)", re.MULTILINE)),
    ("python", re.compile(r"^(?:def \w+\(.*\).*:|from [\w.]+ import |class \w+.*:)\s*", re.MULTILINE)),
    ("c", re.compile(r"^#include [<\"]\w", re.MULTILINE)),
)
"""Only reliable patterns, in order of priority: a wrong language is worse than none."""


def may_be_source(name: str) -> bool | None:
    """Whether a file with this name can be source text. None: only its text can tell."""
    found = _by_name(PurePosixPath(name).name)
    return None if found is None else any(found[1])


def language(name: str, content: str) -> str | None:
    """Return the language by file name, then by text, or None."""
    found = _by_name(PurePosixPath(name).name)
    if found is None:
        return by_content(content)
    extension, spoken = found
    return (spoken[0] if len(spoken) == 1 else _chosen(extension, spoken, content)) or None


def by_content(content: str) -> str | None:
    """Return the language by shebang or by a pattern unique to one language, or None."""
    if content.startswith("#!"):
        return _interpreter(content)
    return next((name for name, pattern in SAID if pattern.search(content[:4000])), None)


def _by_name(file: str) -> tuple[str, tuple[str, ...]] | None:
    """Return the longest extension that is known, with its languages. A known file name has no extension."""
    named = FILENAMES.get(file)
    if named is None:
        named = LOWER_NAMES.get(file.lower())
    if named is not None:
        return "", (named,)
    stem, dot, rest = file.partition(".")
    while dot:
        extension = f".{rest}".lower()
        if extension in EXTENSIONS:
            return extension, EXTENSIONS[extension]
        if stem in VARIANTS and extension not in NO_VARIANTS and "." not in rest:
            return "", (FILENAMES.get(stem) or LOWER_NAMES.get(stem.lower(), ""),)
        _, dot, rest = rest.partition(".")
    return None


def _chosen(extension: str, spoken: tuple[str, ...], content: str) -> str | None:
    """Return which of several languages a text is in."""
    if content.startswith("#!") and (named := _interpreter(content)) in spoken:
        return named
    lines = content[:MOST_CHARS].split("\n")
    text = "\n".join(
        line[:LONGEST_LINE] for line in lines if line.strip()
    )  # most patterns begin with any number of blanks
    for name, pattern in OURS.get(extension, ()):
        if pattern.search(text):
            return name
    for name, conditions in _rules(extension):
        if all(any(pattern.search(text) for pattern in patterns) is wanted for wanted, patterns in conditions):
            return name
    return USUAL.get(extension)


def _interpreter(content: str) -> str | None:
    match = SHEBANG.match(content)
    return (INTERPRETERS.get(match.group(1)) or INTERPRETERS.get(match.group(1).lower())) if match else None


@cache
def _rules(extension: str) -> tuple[tuple[str, tuple[tuple[bool, tuple[re.Pattern[str], ...]], ...]], ...]:
    """Return linguist's rules for an extension, in order. Compiled on first use: most extensions never occur."""
    return tuple(
        (name, tuple((wanted, tuple(re.compile(text, re.MULTILINE) for text in texts)) for wanted, texts in conditions))
        for name, conditions in _TABLE["rules"].get(extension, ())
    )
