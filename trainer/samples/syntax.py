"""Parses source text to syntax trees.

Grammars are imported on first use. Parsing takes about 1 s per 10 MB. trial.py first tries each text in another
process. Texts that take too much memory or time there are not parsed.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache

from tree_sitter import Language, Node, Parser, Tree

from trainer.samples import trial

MAX_BYTES = 1 << 20
"""Longer texts are not parsed."""

MAX_ERROR_SHARE = 0.05
"""Maximum share of bytes with syntax errors (macros, newer syntax)."""


@dataclass(frozen=True, kw_only=True)
class Grammar:
    """A language's grammar, and its node types for samples."""

    module: str
    entry: str = "language"
    """The module's function that returns the grammar."""
    blocks: frozenset[str]
    """Nodes whose children are statements or definitions."""


def _grammar(module: str, blocks: str, entry: str = "language") -> Grammar:
    return Grammar(module=module, entry=entry, blocks=frozenset(blocks.split()))


_SCRIPT_BLOCKS = "program statement_block class_body switch_body interface_body"
_C_BLOCKS = "translation_unit compound_statement field_declaration_list declaration_list preproc_if preproc_ifdef"

GRAMMARS: dict[str, Grammar] = {
    "python": _grammar("tree_sitter_python", "module block"),
    "rust": _grammar("tree_sitter_rust", "source_file block declaration_list field_declaration_list"),
    "go": _grammar("tree_sitter_go", "source_file block statement_list"),
    "javascript": _grammar("tree_sitter_javascript", _SCRIPT_BLOCKS),
    "typescript": _grammar("tree_sitter_typescript", _SCRIPT_BLOCKS, "language_typescript"),
    "tsx": _grammar("tree_sitter_typescript", _SCRIPT_BLOCKS, "language_tsx"),
    "java": _grammar("tree_sitter_java", "program block class_body interface_body constructor_body"),
    "c": _grammar("tree_sitter_c", _C_BLOCKS),
    "cpp": _grammar("tree_sitter_cpp", _C_BLOCKS),
}
ALIASES = {"c++": "cpp", "jsx": "javascript", "js": "javascript", "ts": "typescript", "py": "python", "rs": "rust"}


ATTRIBUTES = frozenset({"attribute_item", "decorator"})
LEADING = ATTRIBUTES | {"comment", "line_comment", "block_comment"}
"""Nodes that may belong to the following node."""


@dataclass(frozen=True, eq=False)
class Source:
    """A text with its tree. Positions are UTF-8 byte offsets."""

    language: str
    """The grammar's name."""
    data: bytes
    tree: Tree

    @property
    def grammar(self) -> Grammar:
        return GRAMMARS[self.language]

    @property
    def root(self) -> Node:
        return self.tree.root_node

    def text(self, start: int, stop: int) -> str:
        """Return the text between two positions."""
        return self.data[start:stop].decode()

    def is_all(self, start: int, stop: int) -> bool:
        """Whether only whitespace is outside of two positions."""
        first, last = self._text_span
        return start <= first and stop >= last

    def line_start(self, place: int) -> int:
        """Return the start of a position's line."""
        return self.data.rfind(b"\n", 0, place) + 1

    def begin(self, siblings: list[Node], index: int) -> int:
        """Return a node's start, including the comments and attributes right above it."""
        start = siblings[index].start_byte
        while index > 0:
            above = siblings[index - 1]
            text = self.data[above.start_byte : start]
            blank_lines = text[len(text.rstrip()) :].count(b"\n") > 1
            if above.type not in LEADING or (blank_lines and above.type not in ATTRIBUTES):
                break
            if self.data[self.line_start(above.start_byte) : above.start_byte].strip():
                break  # a comment behind code
            start = above.start_byte
            index -= 1
        line = self.line_start(start)
        return start if self.data[line:start].strip() else line

    def boundary_lines(self, low: int, high: int) -> list[int]:
        """Return the lines from `low` to `high` (from 0) where a statement or definition starts with its comments.

        A text can be cut above such a line without splitting anything.
        """
        found: set[int] = set()
        waiting = [self.root]
        while waiting:
            node = waiting.pop()
            children = node.children
            waiting.extend(c for c in children if c.end_point.row >= low and c.start_point.row <= high)
            if node.type not in self.grammar.blocks:
                continue
            for index, child in enumerate(children):
                if child.type in LEADING:
                    continue
                if child.is_named and child.start_point.row >= low:
                    place = self.begin(children, index)
                    if place == self.line_start(place):
                        found.add(self.data.count(b"\n", 0, place))
                if child.start_point.row > high:
                    break  # with its comments, the first one beyond may still start before
        return sorted(line for line in found if low <= line <= high)

    @cached_property
    def _text_span(self) -> tuple[int, int]:
        """Start of the first and end of the last non-whitespace character."""
        return len(self.data) - len(self.data.lstrip()), len(self.data.rstrip())

    @cached_property
    def nodes(self) -> list[Node]:
        """Return all named nodes in text order, parents before children."""
        return list(descend(self.root))


def language_name(language: str, path: str | None = None) -> str:
    """Return the grammar's name for a row's language. A .tsx file always has its own grammar."""
    name = ALIASES.get(language.lower(), language.lower())
    return "tsx" if name == "typescript" and path is not None and path.endswith((".tsx", ".jsx")) else name


def parse(language: str, content: str, path: str | None = None) -> Source | None:
    """Parse a text. Returns None without a grammar, for texts over a limit, and for texts in another language."""
    source, share = _parsed(language_name(language, path), content)
    return source if share <= MAX_ERROR_SHARE else None


def unparsed_share(language: str, content: str, path: str | None = None) -> float:
    """Return the share of bytes with syntax errors. 0 without a grammar, and for texts over a limit."""
    return _parsed(language_name(language, path), content)[1]


def look_ahead(texts: Iterable[tuple[str, str, str | None]]) -> None:
    """Start the trials of texts (language, content, path) that are parsed next."""
    named = ((language_name(language, path), content) for language, content, path in texts)
    trial.look_ahead(
        (name, content.encode(errors="replace"))  # a lone surrogate is rejected later
        for name, content in named
        if name in GRAMMARS and len(content) <= MAX_BYTES
    )


@lru_cache(maxsize=4)
def _parsed(name: str, content: str) -> tuple[Source | None, float]:
    """Return a text's tree, and its share of syntax errors.

    The last few results are cached, because several steps parse the same row. A C header may be C++, so the result with
    fewer errors is taken."""
    data = content.encode() if name in GRAMMARS else b""
    if not data or len(data) > MAX_BYTES:
        return None, 0.0
    parser = parser_of(name)  # here, because a grammar that is not installed must not look like a text over the limits
    if not trial.passes(name, data):
        return None, 0.0
    source = Source(name, data, parser.parse(data))
    share = _error_bytes(source.root) / len(data)
    if name == "c" and share > MAX_ERROR_SHARE:
        return min((source, share), _parsed("cpp", content), key=lambda reading: reading[1])
    return source, share


def descend(node: Node) -> Iterator[Node]:
    """Yield a node and all named nodes below it in text order, parents first. Works without recursion at any depth."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        yield node
        waiting.extend(reversed(node.named_children))


@cache
def parser_of(name: str) -> Parser:
    """Return the parser of a grammar."""
    grammar = GRAMMARS[name]
    return Parser(Language(getattr(importlib.import_module(grammar.module), grammar.entry)()))


def _error_bytes(root: Node) -> int:
    """Count the bytes in error nodes. A missing token counts as one byte."""
    if not root.has_error:
        return 0
    total, waiting = 0, [root]
    while waiting:
        node = waiting.pop()
        if node.is_error or node.is_missing:
            total += max(1, node.end_byte - node.start_byte)
        else:
            waiting.extend(child for child in node.children if child.has_error or child.is_missing)
    return total
