"""Builder `items`: samples of a file's functions, types and modules, besides the whole file.

An item includes its attributes, decorators and the comments right above it. Methods stay in their class or impl; in
Java, where a file is one class, they are also items. Nested functions and macro arguments are not items. Only public
functions count, if the language marks them. Every item is a substring of its file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from tree_sitter import Node

from trainer.recipe import Data
from trainer.records import Row
from trainer.samples.sample import Control, Document, Rejected, Text
from trainer.samples.syntax import LEADING, Source, parse

MIN_BYTES = 40
"""Shorter items (`pub struct Marker;`) are skipped: they teach nothing."""

MAX_DEPTH = 8
"""Deeper nested items are skipped: each level repeats the file."""

Span = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Items:
    """Definition of items in one language."""

    kinds: Mapping[str, str]
    """Node → kind."""
    inside: frozenset[str]
    """Nodes that contain items. They may be items themselves."""
    is_public: Callable[[Node], bool] = lambda _node: True
    """Whether a function is public."""


def build_items(row: Row, data: Data, *, seed: int) -> list[Document]:
    """Make one document of the file, and one of each item.

    Raises:
        Rejected: `empty` (only whitespace).
    """
    if not row.content.strip():
        raise Rejected("empty")
    documents = [_document(row, "file", row.content)]
    source = parse(row.language, row.content, row.path)
    if source is not None:
        found = find_items(source, ITEMS[source.language])
        documents += [_document(row, kind, source.text(*span)) for kind, span in found]
    return documents


def find_items(source: Source, items: Items) -> Iterator[tuple[str, Span]]:
    """Yield kind and span (first byte, one past the last) of each item, in text order.

    Skips items with a syntax error, items shorter than MIN_BYTES and items deeper than MAX_DEPTH.
    """
    waiting = [(source.root, 0)]
    found: list[tuple[Span, str]] = []
    while waiting:
        holder, depth = waiting.pop()
        children = holder.children
        for index, child in enumerate(children):
            node = _unwrapped(child)
            kind = _kind(node, items)
            within = depth + (kind is not None)
            if within < MAX_DEPTH:
                waiting.extend((holder, within) for holder in {child, node} if holder.type in items.inside)
            if kind is not None:
                span = source.begin(children, index), _end(source, children, index)
                if span[1] - span[0] >= MIN_BYTES and not source.is_all(*span):
                    found.append((span, kind))
    for span, kind in sorted(set(found)):
        yield kind, span


def _kind(node: Node, items: Items) -> str | None:
    kind = items.kinds.get(node.type)
    if node.has_error or kind is None:
        return None
    if kind in ("struct", "enum", "union", "class", "module") and node.type.endswith(("specifier", "mod_item")):
        return (
            kind if node.child_by_field_name("body") is not None else None
        )  # `mod name;` and `struct name` are only declarations
    return None if kind in ("function", "method") and not items.is_public(node) else kind


def _unwrapped(node: Node) -> Node:
    """Return the definition inside `export …`, a decorator or a template, or the node itself."""
    while node.type in WRAPPERS:
        inner = node.child_by_field_name("declaration") or node.child_by_field_name("definition")
        inner = inner or (node.named_children[-1] if node.named_children else None)
        if inner is None:
            return node
        node = inner
    if node.type == "lexical_declaration":  # const name = (…) => …
        values = [child.child_by_field_name("value") for child in node.named_children]
        return next((value for value in values if value is not None and value.type in FUNCTION_VALUES), node)
    return node


def _end(source: Source, siblings: list[Node], index: int) -> int:
    """Return an item's end, including its semicolon, a comment on its last line, and its newline."""
    stop = siblings[index].end_byte
    for after in siblings[index + 1 :]:
        same_line = b"\n" not in source.data[stop : after.start_byte]
        if after.type != ";" and not (after.type in LEADING and same_line):
            break
        stop = after.end_byte
    return stop + 1 if source.data[stop - 1 : stop] != b"\n" and source.data[stop : stop + 1] == b"\n" else stop


def _document(row: Row, kind: str, text: str) -> Document:
    pieces = (Text(text=text, supervised=True), Control(role="end", supervised=True))
    return Document(file_id=row.file_id, kind=kind, pieces=pieces, windowed=True)


def _name(node: Node) -> bytes:
    name = node.child_by_field_name("name")
    return b"" if name is None or name.text is None else name.text


def _has_modifier(node: Node, word: bytes) -> bool:
    """Whether a modifier precedes a declaration's name."""
    kinds = ("visibility_modifier", "modifiers", "storage_class_specifier")
    return any(child.type in kinds and word in (child.text or b"").split() for child in node.children)


WRAPPERS = frozenset({"export_statement", "decorated_definition", "template_declaration", "expression_statement"})
FUNCTION_VALUES = frozenset({"arrow_function", "function_expression", "generator_function"})


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SCRIPT = Items(
    kinds={
        "function_declaration": "function",
        "generator_function_declaration": "function",
        "arrow_function": "function",
        "function_expression": "function",
        "class_declaration": "class",
        "abstract_class_declaration": "class",
        "interface_declaration": "interface",
        "type_alias_declaration": "type",
        "enum_declaration": "enum",
        "internal_module": "module",
        "module": "module",
    },
    inside=_names("internal_module module statement_block"),
)
_C_KINDS = {
    "function_definition": "function",
    "struct_specifier": "struct",
    "union_specifier": "union",
    "enum_specifier": "enum",
    "type_definition": "type",
}
_C_INSIDE = "preproc_if preproc_ifdef preproc_else preproc_elif linkage_specification declaration_list"

ITEMS: dict[str, Items] = {
    "python": Items(
        kinds={"function_definition": "function", "class_definition": "class"},
        inside=_names("if_statement else_clause elif_clause try_statement except_clause finally_clause block"),
        is_public=lambda node: not _name(node).startswith(b"_"),
    ),
    "rust": Items(
        kinds={
            "function_item": "function",
            "struct_item": "struct",
            "union_item": "union",
            "enum_item": "enum",
            "trait_item": "trait",
            "impl_item": "impl",
            "mod_item": "module",
            "macro_definition": "macro",
            "macro_invocation": "macro_call",
        },
        inside=_names("mod_item declaration_list"),
        is_public=lambda node: any(child.type == "visibility_modifier" for child in node.children),
    ),
    "go": Items(
        kinds={"function_declaration": "function", "method_declaration": "method", "type_declaration": "type"},
        inside=frozenset(),
        is_public=lambda node: _name(node)[:1].decode(errors="replace").isupper(),
    ),
    "javascript": _SCRIPT,
    "typescript": _SCRIPT,
    "tsx": _SCRIPT,
    "java": Items(
        kinds={
            "class_declaration": "class",
            "record_declaration": "class",
            "interface_declaration": "interface",
            "annotation_type_declaration": "interface",
            "enum_declaration": "enum",
            "method_declaration": "method",
        },
        inside=_names("class_declaration record_declaration enum_declaration class_body enum_body_declarations"),
        is_public=lambda node: _has_modifier(node, b"public"),
    ),
    "c": Items(kinds=_C_KINDS, inside=_names(_C_INSIDE), is_public=lambda node: not _has_modifier(node, b"static")),
    "cpp": Items(
        kinds=_C_KINDS | {"class_specifier": "class", "namespace_definition": "module", "concept_definition": "type"},
        inside=_names(f"{_C_INSIDE} namespace_definition"),
        is_public=lambda node: not _has_modifier(node, b"static"),
    ),
}
