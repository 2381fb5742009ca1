"""Renames local variables of functions through the syntax tree, without changing the code's meaning.

A name is changed only if it is visible in its own function alone: bound by a plain assignment or declaration in the
body, not used in an inner function, class, macro, format string or shorthand, and unknown outside of functions.
Parameters keep their names, because callers may use them. Functions that inspect names (eval, locals) are unchanged.
Supports Python, Rust, JavaScript and TypeScript. Rows of other languages are unchanged.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from tree_sitter import Node

from trainer.records import Row
from trainer.samples.syntax import Source, parse

NAMES = (
    "value", "item", "entry", "current", "result", "data", "element", "total", "target", "first", "part", "record",
    "state", "found", "place", "amount", "other", "mark", "unit", "piece", "step", "left", "chosen", "inner", "seen",
)  # fmt: skip
"""New names. The first unused one in shuffled order is taken, with a number if all are used."""

WORD, BRACES = re.compile(rb"\w+"), re.compile(rb"\{[^{}]*\}")
SELF_AWARE = frozenset({b"eval", b"exec", b"locals", b"vars", b"dir", b"globals"})


@dataclass(frozen=True, kw_only=True)
class Scopes:
    """Node types of names and scopes in one language."""

    functions: frozenset[str]
    """Nodes with their own scope and a field `body`."""
    inner: frozenset[str]
    """Nodes whose names cannot be changed: inner functions, classes, macros."""
    bound: Callable[[Node], Iterator[Node]]
    """Yields the names bound in a function's body. For Rust and scripts, only those visible in the whole body."""
    frozen: frozenset[str]
    """Parents whose names must not change: attributes, keywords, shorthands, paths."""


def renamed(row: Row, *, fraction: float, seed: int) -> Row:
    """Rename the row's local variables, if drawn and if it is safe. Otherwise return the row unchanged.

    The new text parses to the same tree, and differs only in the renamed words.
    """
    draw = random.Random(f"{seed}:rename:{row.file_id}")
    if draw.random() >= fraction:
        return row
    source = parse(row.language, row.content, row.path)
    scopes = SCOPES.get(source.language) if source is not None else None
    if scopes is None or source is None or source.root.has_error:
        return row
    edits = list(_edits(source, scopes, draw))
    if not edits:
        return row
    data = source.data
    for place, old, new in sorted(edits, reverse=True):
        data = data[:place] + new + data[place + len(old) :]
    content = data.decode()
    after = parse(row.language, content, row.path)
    changed: dict[bytes, set[bytes]] = defaultdict(set)
    for _, old, new in edits:
        changed[old].add(new)
    return replace(row, content=content) if after is not None and _same(source, after, changed) else row


def _edits(source: Source, scopes: Scopes, draw: random.Random) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield position, old name and new name of every word to change."""
    used, least = set(WORD.findall(source.data)), 0
    functions, outside = _functions(source, scopes)
    for function in functions:
        body = function.child_by_field_name("body")
        if body is None:
            continue
        names = {name.text or b"" for name in scopes.bound(body)} - outside - _unsafe(function, body, scopes)
        others: dict[bytes, bytes] = {}
        for name in sorted(name for name in names if not name.startswith(b"_")):
            others[name], least = _new_name(used, draw, least)
            used.add(others[name])
        for node in _below(body) if others else ():
            if node.type == "identifier" and node.text in others:
                yield node.start_byte, node.text, others[node.text]


def _functions(source: Source, scopes: Scopes) -> tuple[list[Node], set[bytes]]:
    """Return the outermost functions, and all names outside of their bodies."""
    functions, outside, waiting = [], set(), [source.root]
    while waiting:
        node = waiting.pop()
        if node.type in scopes.functions:
            functions.append(node)
            body = node.child_by_field_name("body")
            waiting.extend(child for child in node.children if child != body)
        else:
            waiting.extend(node.children)
        if not node.children:
            outside.add(node.text or b"")
    return sorted(functions, key=lambda node: node.start_byte), outside


def _unsafe(function: Node, body: Node, scopes: Scopes) -> set[bytes]:
    """Return the names of a body that must not change. All names, if the body inspects names."""
    unsafe: set[bytes] = set()
    inner_end = 0
    for node in _below(body):
        if node.end_byte <= inner_end and not node.children:
            unsafe.add(node.text or b"")
        if node.type in scopes.inner:
            inner_end = max(inner_end, node.end_byte)
        elif node.type == "identifier":
            if node.text in SELF_AWARE:
                return {other.text or b"" for other in _below(body)}
            if node.parent is not None and node.parent.type in scopes.frozen and not _is_value(node):
                unsafe.add(node.text or b"")
        elif _shows_names(node):
            unsafe.update(word for braces in BRACES.findall(node.text or b"") for word in WORD.findall(braces))
        elif node.type.startswith("shorthand"):
            unsafe.add(node.text or b"")
    return unsafe


def _shows_names(node: Node) -> bool:
    """Whether a string may contain names that the tree does not show: Rust's formats, Python's `{x=}`."""
    return node.type in ("string_literal", "raw_string_literal") or (
        node.type == "interpolation" and any(child.type == "=" for child in node.children)
    )


def _is_value(node: Node) -> bool:
    """Whether a name is its parent's value: `object` in `object.name`, `value` in `key=value`."""
    parent = node.parent
    assert parent is not None
    return any(parent.child_by_field_name(field) == node for field in ("object", "value"))


def _below(node: Node) -> Iterator[Node]:
    """Yield all nodes below a node, in text order."""
    waiting = list(reversed(node.children))
    while waiting:
        node = waiting.pop()
        yield node
        waiting.extend(reversed(node.children))


def _new_name(used: set[bytes], draw: random.Random, least: int) -> tuple[bytes, int]:
    """Return an unused name and its number. The next search can start from this number."""
    names = draw.sample(NAMES, len(NAMES))
    numbered = ((f"{name}{number or ''}".encode(), number) for number in range(least, len(used) + 1) for name in names)
    return next((name, number) for name, number in numbered if name not in used)


def _same(before: Source, after: Source, changed: dict[bytes, set[bytes]]) -> bool:
    """Whether two trees differ only in the changed names."""
    old, new = list(_below(before.root)), list(_below(after.root))
    return len(old) == len(new) and all(
        a.type == b.type and (a.children or a.text == b.text or b.text in changed.get(a.text or b"", ()))
        for a, b in zip(old, new, strict=True)
    )


def _python_bound(body: Node) -> Iterator[Node]:
    """Plain targets of assignments and loops at any depth: a name bound in a body belongs to the whole body."""
    kept = {
        name.text
        for node in _below(body)
        if node.type in ("global_statement", "nonlocal_statement", "import_statement", "import_from_statement")
        for name in _below(node)
    }
    if any(node.type in ("match_statement", "type_alias_statement") for node in _below(body)):
        return
    for node in _below(body):
        if node.type in ("assignment", "for_statement"):
            target = node.child_by_field_name("left")
            targets = [] if target is None else [target, *target.children] if "pattern" in target.type else [target]
            yield from (name for name in targets if name.type == "identifier" and name.text not in kept)


def _script_bound(body: Node) -> Iterator[Node]:
    """Names that the body's own statements declare, so that the whole body sees them."""
    for node in body.children:
        if node.type in ("lexical_declaration", "variable_declaration"):
            for declarator in node.named_children:
                name = declarator.child_by_field_name("name")
                if name is not None and name.type == "identifier":
                    yield name


def _rust_bound(body: Node) -> Iterator[Node]:
    """Names that a `let` among the body's own statements binds before anything uses them."""
    first: dict[bytes | None, Node] = {}
    for node in _below(body):
        if node.type == "identifier":
            first.setdefault(node.text, node)
    for node in body.children:
        name = node.child_by_field_name("pattern") if node.type == "let_declaration" else None
        if name is None or name.type != "identifier":
            continue
        value = node.child_by_field_name("value")
        in_value = [] if value is None else [value, *_below(value)]
        own = [node for node in in_value if node.type == "identifier" and node.text == name.text]
        if first[name.text] == name and not own:
            yield name


def _kinds(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SCRIPT = Scopes(
    functions=_kinds(
        "function_declaration generator_function_declaration function_expression arrow_function method_definition"
    ),
    inner=_kinds(
        "function_declaration generator_function_declaration function_expression generator_function arrow_function "
        "method_definition class class_declaration with_statement import_statement export_statement"
    ),
    bound=_script_bound,
    frozen=_kinds("jsx_opening_element jsx_closing_element jsx_self_closing_element nested_identifier type_query"),
)
SCOPES: dict[str, Scopes] = {
    "python": Scopes(
        functions=_kinds("function_definition"),
        inner=_kinds("function_definition lambda class_definition decorated_definition"),
        bound=_python_bound,
        frozen=_kinds("attribute keyword_argument"),
    ),
    "rust": Scopes(
        functions=_kinds("function_item"),
        inner=_kinds(
            "function_item closure_expression token_tree impl_item struct_item const_item static_item mod_item"
        ),
        bound=_rust_bound,
        frozen=_kinds("shorthand_field_initializer scoped_identifier scoped_type_identifier use_declaration"),
    ),
    "javascript": _SCRIPT,
    "typescript": _SCRIPT,
    "tsx": _SCRIPT,
}
