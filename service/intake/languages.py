"""Detects a file's language by its name, then by its text."""

from __future__ import annotations

import re
from pathlib import Path

LANGUAGES = {
    ".py": "python", ".pyi": "python", ".rs": "rust", ".go": "go", ".js": "javascript", ".mjs": "javascript",
    ".cjs": "javascript", ".jsx": "javascript", ".ts": "typescript", ".tsx": "typescript", ".java": "java",
    ".kt": "kotlin", ".scala": "scala", ".c": "c", ".h": "c", ".cc": "cpp", ".cpp": "cpp", ".cxx": "cpp",
    ".hh": "cpp", ".hpp": "cpp", ".cs": "csharp", ".swift": "swift", ".rb": "ruby", ".php": "php", ".pl": "perl",
    ".lua": "lua", ".r": "r", ".jl": "julia", ".hs": "haskell", ".ml": "ocaml", ".ex": "elixir", ".exs": "elixir",
    ".erl": "erlang", ".clj": "clojure", ".dart": "dart", ".zig": "zig", ".nim": "nim", ".sh": "bash",
    ".bash": "bash", ".sql": "sql", ".html": "html", ".css": "css", ".scss": "css", ".vue": "vue",
    ".proto": "protobuf", ".cmake": "cmake", ".tf": "terraform", ".asm": "assembly", ".s": "assembly",
}  # fmt: skip
"""Language by extension."""

NAMES = {"makefile": "makefile", "dockerfile": "dockerfile", "cmakelists.txt": "cmake", "rakefile": "ruby"}
INTERPRETERS = {
    "python": "python", "sh": "bash", "bash": "bash", "zsh": "bash", "node": "javascript", "ruby": "ruby",
    "perl": "perl", "php": "php", "lua": "lua", "rscript": "r", "julia": "julia",
}  # fmt: skip
SHEBANG = re.compile(r"#!\s*\S*?/?(?:env(?:\s+-\S+)*\s+)?([A-Za-z]+)[\d.]*(?:\s|$)")
CPP = re.compile(r"^\s*(?:namespace\s+\w|template\s*<|class\s+\w+|using\s+\w|#include\s*<\w+>)|\bstd::", re.MULTILINE)
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


def by_name(name: str) -> str | None:
    """Return the language by file name, or None."""
    path = Path(name)
    return LANGUAGES.get(path.suffix.lower()) or NAMES.get(path.name.lower())


def language(name: str, content: str) -> str | None:
    """Return the language by file name, then by text, or None."""
    named = by_name(name)
    if named == "c" and name.lower().endswith(".h") and CPP.search(content):
        return "cpp"
    return named or by_content(content)


def by_content(content: str) -> str | None:
    """Return the language by shebang or by a pattern unique to one language, or None."""
    if content.startswith("#!"):
        match = SHEBANG.match(content)
        return INTERPRETERS.get(match.group(1).lower()) if match else None
    return next((name for name, pattern in SAID if pattern.search(content[:4000])), None)
