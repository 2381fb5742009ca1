"""Orders the files of a repository so that imported files come first.

Imports are read from the syntax tree and resolved to the repository's files. Files are sorted by path if their language
has no grammar or no file imports, and if they import each other. Not covered: search paths from build files, Python
namespace packages beyond their folders, and `go.mod` replacements.
"""

from __future__ import annotations

import heapq
import posixpath
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

from tree_sitter import Node

from trainer.records import Row
from trainer.samples.syntax import Source, parse

SCRIPT_ENDINGS = ("", ".ts", ".tsx", ".js", ".jsx", ".mjs", "/index.ts", "/index.tsx", "/index.js")


def import_order(rows: Sequence[Row]) -> list[Row]:
    """Order the rows of one repository, each after its imports. Cycles are fine; every row occurs once."""
    by_path = {row.path or "": row for row in rows}
    if len(by_path) < len(rows):
        return sorted(rows, key=lambda row: (row.path or "", row.file_id))
    files = Files(by_path)
    needed = {path: files.imported_by(row) - {path} for path, row in by_path.items()}
    importers: defaultdict[str, set[str]] = defaultdict(set)
    for path, others in needed.items():
        for other in others:
            importers[other].add(path)
    waiting = [(len(others), path) for path, others in needed.items()]
    heapq.heapify(waiting)
    ordered: dict[str, Row] = {}
    while waiting:
        count, path = heapq.heappop(waiting)
        if path in ordered or count != len(needed[path]):
            continue  # already done
        ordered[path] = by_path[path]
        for importer in importers[path]:
            needed[importer].discard(path)
            heapq.heappush(waiting, (len(needed[importer]), importer))
    return list(ordered.values())


class Files:
    """Finds a repository's files by import."""

    def __init__(self, paths: dict[str, Row]) -> None:
        self.paths = paths
        self.by_name: defaultdict[str, list[str]] = defaultdict(list)
        self.by_folder: defaultdict[str, list[str]] = defaultdict(list)
        for path in sorted(paths):
            self.by_name[posixpath.basename(path)].append(path)
            self.by_folder[posixpath.basename(posixpath.dirname(path))].append(path)

    def imported_by(self, row: Row) -> set[str]:
        """Return the paths of the repository's files that a row imports."""
        source = parse(row.language, row.content, row.path)
        read = IMPORTS.get(source.language) if source is not None else None
        if read is None or source is None or row.path is None:
            return set()
        found: set[str] = set()
        for candidates in read(source, posixpath.dirname(row.path), posixpath.basename(row.path)):
            hits = (self._find(candidate) for candidate in candidates)
            found.update(next((hit for hit in hits if hit), []))
        return found

    def _find(self, candidate: str) -> list[str]:
        """Find files: `./x` is an exact path, `…/x/` all files of a folder, anything else a path suffix."""
        if candidate.startswith("./"):
            path = posixpath.normpath(candidate)
            return [path] if path in self.paths else []
        if candidate.endswith("/"):
            folder = candidate.rstrip("/")
            near = self.by_folder[posixpath.basename(folder)]
            return [path for path in near if f"/{posixpath.dirname(path)}".endswith(f"/{folder}")]
        near = self.by_name[posixpath.basename(candidate)]
        return [path for path in near if f"/{path}".endswith(f"/{candidate}")][:1]


Candidates = list[str]
"""Possible targets of one import, likeliest first."""


def _python(source: Source, folder: str, _name: str) -> Iterator[Candidates]:
    for node in source.nodes:
        if node.type == "import_statement":
            for child in node.children_by_field_name("name"):
                name = child.child_by_field_name("name") if child.type == "aliased_import" else child
                yield _python_files(_text(name).split("."), None)
        elif node.type == "import_from_statement":
            module = _text(node.child_by_field_name("module_name"))
            dots = len(module) - len(module.lstrip("."))
            base = posixpath.join(".", folder, *[".."] * (dots - 1)) if dots else None
            parts = [part for part in module[dots:].split(".") if part]
            for child in node.children_by_field_name("name"):
                name = child.child_by_field_name("name") if child.type == "aliased_import" else child
                yield _python_files([*parts, *_text(name).split(".")], base) + _python_files(parts, base)
            if not node.children_by_field_name("name"):
                yield _python_files(parts, base)


def _python_files(parts: list[str], base: str | None) -> Candidates:
    module = "/".join(parts)
    if base is not None:
        return [f"./{base}/{module}.py", f"./{base}/{module}/__init__.py"] if parts else [f"./{base}/__init__.py"]
    return [f"{module}.py", f"{module}/__init__.py"] if parts else []


def _rust(source: Source, folder: str, name: str) -> Iterator[Candidates]:
    stem = name.removesuffix(".rs")
    own = folder if stem in ("mod", "lib", "main") else posixpath.join(folder, stem)
    root = folder.split("src")[0] + "src" if "src" in folder.split("/") else folder
    for node in source.nodes:
        if node.type == "mod_item" and node.child_by_field_name("body") is None:
            module = _text(node.child_by_field_name("name"))
            yield [f"./{own}/{module}.rs", f"./{own}/{module}/mod.rs"]
        elif node.type == "use_declaration":
            path = _text(node.child_by_field_name("argument")).partition("{")[0].partition(" as ")[0]
            parts = [part.strip() for part in path.split("::") if part.strip() not in ("", "*")]
            start = {"crate": root, "super": posixpath.join(own, ".."), "self": own}.get(parts[0] if parts else "")
            if start is not None:
                names = parts[1:]
                ends = ["/".join(names[:count]) for count in range(len(names), 0, -1)]
                yield [f"./{start}/{end}{tail}" for end in ends for tail in (".rs", "/mod.rs")]


def _go(source: Source, _folder: str, _name: str) -> Iterator[Candidates]:
    for node in source.nodes:
        if node.type == "import_spec":
            parts = _text(node.child_by_field_name("path")).strip('"`').split("/")
            yield ["/".join(parts[count:]) + "/" for count in range(len(parts))]


def _script(source: Source, folder: str, _name: str) -> Iterator[Candidates]:
    for node in source.nodes:
        where = None
        if node.type in ("import_statement", "export_statement"):
            where = node.child_by_field_name("source")
        elif node.type == "call_expression" and _text(node.child_by_field_name("function")) in ("require", "import"):
            arguments = node.child_by_field_name("arguments")
            where = arguments.named_children[0] if arguments is not None and arguments.named_children else None
        path = _text(where).strip("\"'`")
        if path.startswith("."):
            whole = posixpath.join(".", folder, path)
            without = whole.removesuffix(".js")  # TypeScript imports the compiled file's name
            yield [f"./{base}{ending}" for base in (whole, without) for ending in SCRIPT_ENDINGS]


def _java(source: Source, _folder: str, _name: str) -> Iterator[Candidates]:
    for node in source.nodes:
        if node.type == "import_declaration":
            parts = _text(node).removeprefix("import").replace("static ", "").strip(" ;\n").split(".")
            yield ["/".join(parts[:count]) + ".java" for count in range(len(parts), 1, -1)]


def _c(source: Source, folder: str, _name: str) -> Iterator[Candidates]:
    for node in source.nodes:
        if node.type == "preproc_include":
            path = node.child_by_field_name("path")
            if path is not None and path.type == "string_literal":
                named = _text(path).strip('"')
                yield [f"./{posixpath.join('.', folder, named)}", named.lstrip("./")]


def _text(node: Node | None) -> str:
    return "" if node is None or node.text is None else node.text.decode()


IMPORTS: dict[str, Callable[[Source, str, str], Iterator[Candidates]]] = {
    "python": _python,
    "rust": _rust,
    "go": _go,
    "javascript": _script,
    "typescript": _script,
    "tsx": _script,
    "java": _java,
    "c": _c,
    "cpp": _c,
}
"""Import reader by language. Takes tree, folder and file name."""
