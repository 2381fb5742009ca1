"""Syntax trees: every grammar parses its language and rejects others. Deep nesting does no harm."""

from __future__ import annotations

import subprocess
import sys

import pytest
from source_rows import source_rows

from trainer.samples.syntax import ALIASES, GRAMMARS, MAX_BYTES, language_name, parse, unparsed_share


@pytest.mark.parametrize("row", source_rows(), ids=lambda row: row.path)
def test_every_language_parses(row):
    source = parse(row.language, row.content, row.path)
    assert source is not None and not source.root.has_error
    assert source.text(0, len(source.data)) == row.content
    assert len(source.nodes) > 50
    kinds = {node.type for node in source.nodes}
    assert GRAMMARS[language_name(row.language, row.path)].blocks & kinds


def test_every_grammar_is_covered_and_has_the_blocks_it_names():
    rows = {language_name(row.language, row.path): row for row in source_rows()}
    assert set(rows) == set(GRAMMARS)
    assert set(ALIASES.values()) <= set(GRAMMARS)


@pytest.mark.parametrize(
    ("language", "content"),
    [
        ("cobol", "DISPLAY 'HI'."),
        ("python", ""),
        ("python", "))) def ((( class\n" * 5),
        ("rust", "def f():\n    return 1\n" * 5),
        ("python", "x = 1\n" * (MAX_BYTES // 6 + 1)),
    ],
)
def test_texts_without_a_tree(language, content):
    assert parse(language, content) is None


def test_a_small_error_is_tolerated():
    content = "def f(x):\n    return x + 1\n" * 40
    assert parse("python", content + "x = = 3\n") is not None


@pytest.mark.parametrize(("wrong", "share"), [(0, 0), (10, 0.1), (40, 0.4)])
def test_the_share_that_the_grammar_cannot_parse_is_measured(wrong, share):
    good = "def f(x):\n    return x + 1\n\n\n" * 100
    content = good + ")" * round(len(good) * wrong / (100 - wrong))
    assert unparsed_share("python", content) == pytest.approx(share, abs=0.02)
    assert unparsed_share("cobol", content) == 0


def test_a_file_labelled_c_may_be_a_cpp_header():
    header = "namespace shapes {\ntemplate <typename T>\nclass Box : public Shape<T> {\npublic:\n    T side;\n};\n}\n"
    source = parse("c", header * 5, "box.h")
    assert source is not None and source.language == "cpp"
    plain = parse("c", "int class = 1;\nint f(int new) { return new + class; }\n" * 5, "plain.h")
    assert plain is not None and plain.language == "c"


@pytest.mark.parametrize("content", ["x = " + "(" * 20_000 + ")" * 20_000, "[" * 50_000, "if a:\n b\n" * 9000])
def test_deep_and_long_texts_are_harmless(content):
    source = parse("python", content)
    assert source is None or len(source.nodes) > 1000


def test_grammars_are_imported_when_they_are_needed():
    script = "import sys, trainer.samples.build; print([m for m in sys.modules if m.startswith('tree_sitter_')])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
