"""What `drop` and a claim must both know about a source file: its line ends, and whether it is a source file at all."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

FolderKind = Literal["open", "sources", "vendored"]
"""`sources`: a folder in it may be named `build`, and still be somebody's source."""
MARK = "\ufeff"
"""The byte order mark, as text."""

START, END = re.compile(r"<{7,}(?: .*)?\Z"), re.compile(r">{7,}(?: .*)?\Z")
BETWEEN = re.compile(r"={7,}\Z|\|{7,}(?: .*)?\Z|[%+]{7,} .*\Z")
"""Between the sides. `|||||||` is in diff3, `%%%%%%%` and `+++++++` are Jujutsu's."""

POINTER_CHARS = 1024
LFS = re.compile(r"\s*version https?://[\w./-]+/(?:spec/)?v\d+\r?\n(?:.*\r?\n)*?oid \w+:[0-9a-f]+\b")
ANNEX = re.compile(r"\s*(?:\.?\.?/|\S+?/)?(?:\.git/)?annex/objects/\S+\s*\Z")

DEPENDENCIES = frozenset({
    "node_modules", "bower_components", "jspm_packages", "web_modules", "site-packages", "dist-packages",
    "__pypackages__", "venv", "virtualenv", "vendor", "vendors", "vendored", "_vendor", "third_party",
    "third-party", "thirdparty", "3rdparty", "3rd_party", "3rd-party", "pods", "carthage", "godeps", "elm-stuff",
    "dist-newstyle", "deriveddata", "_esy", "_opam", "wheelhouse", "dist", "__pycache__",
})  # fmt: skip
"""Folders of other people's code, or of code that a program wrote."""
OUTPUTS = frozenset({"build", "target", "out", "_build", "deps"})
"""Folders of the same kind, unless they are below a folder of sources: a package may have these names."""
SOURCES = frozenset({"src", "source", "sources", "lib", "internal", "pkg", "java", "kotlin", "scala", "app", "cmd"})
HIDDEN = frozenset({".tox", ".nox", ".venv", ".eggs", ".bundle", ".yarn", ".cargo", ".gradle", ".terraform"})
BUILT = re.compile(r"(?:cmake-build-\w|bazel-(?:bin|out|testlogs)|.*\.egg-info\Z|.*\.dist-info\Z)")


def plain(text: str) -> str:
    """Return a text without a byte order mark, and with `\\n` at the end of each line."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text.lstrip(MARK) if text.startswith(MARK) else text


def plain_values(value: Any) -> Any:
    """Return the values of metadata with all their texts `plain`. They may hold the text before a change, or turns."""
    match value:
        case str():
            return plain(value)
        case Mapping():
            return {key: plain_values(item) for key, item in value.items()}
        case list() | tuple():
            return [plain_values(item) for item in value]
    return value


def has_conflict(text: str) -> bool:
    """Whether a text has the markers of a merge conflict: of its start, between its sides and of its end, in order."""
    if "<<<<<<<" not in text or ">>>>>>>" not in text:
        return False
    expected = START
    for line in text.splitlines():
        if not line.startswith(("<<<<<<<", "=======", "|||||||", "%%%%%%%", "+++++++", ">>>>>>>")):
            continue
        if START.match(line):
            expected = BETWEEN
        elif expected is BETWEEN and BETWEEN.match(line):
            expected = END
        elif expected is END and END.match(line):
            return True
    return False


def pointer(text: str) -> str | None:
    """Return what a text points to instead of being it (`Git LFS pointer`, `git-annex pointer`), or None."""
    if len(text) > POINTER_CHARS:
        return None
    if LFS.match(text):
        return "Git LFS pointer"
    return "git-annex pointer" if ANNEX.match(text) else None


def kind_below(above: FolderKind, name: str) -> FolderKind:
    """Return what a folder in another one is."""
    name = name.lower()
    if above == "vendored" or name in DEPENDENCIES or name in HIDDEN or BUILT.match(name):
        return "vendored"
    if name in OUTPUTS and above != "sources":
        return "vendored"
    return "sources" if name in SOURCES else above


def is_vendored(path: str) -> bool:
    """Whether a folder in a path is one of other people's code, or of built files."""
    *folders, _ = path.replace("\\", "/").split("/")
    kind: FolderKind = "open"
    for folder in folders:
        kind = kind_below(kind, folder)
    return kind == "vendored"
