"""Renaming locals does not change the program."""

from __future__ import annotations

import dis
import time
import types
import warnings
from dataclasses import replace

import pytest
from run_folder import demo_rows, encoder, make_row, program
from source_rows import all_rows, source_row, source_rows

from trainer.data.tokenize import tokenize_rows
from trainer.recipe import Data
from trainer.samples.rename import NAMES, SCOPES, renamed


def rewritten(language: str, content: str) -> str:
    return renamed(replace(make_row(1, content), language=language), fraction=1.0, seed=1).content


def same_program(before: types.CodeType, after: types.CodeType) -> None:
    """Whether instructions, constants, globals and attributes are equal. Only names of locals may differ."""
    if before.co_cellvars or before.co_freevars:  # cells shared with a comprehension are sorted by name
        assert sorted(i.opname for i in dis.get_instructions(before)) == sorted(
            i.opname for i in dis.get_instructions(after)
        )
    else:
        assert before.co_code == after.co_code
    assert before.co_names == after.co_names
    arguments = before.co_argcount + before.co_kwonlyargcount + before.co_posonlyargcount
    assert before.co_varnames[:arguments] == after.co_varnames[:arguments]
    assert len(before.co_freevars) == len(after.co_freevars) and len(before.co_cellvars) == len(after.co_cellvars)
    assert len(before.co_varnames) == len(set(after.co_varnames)) == len(after.co_varnames)
    for old, new in zip(before.co_consts, after.co_consts, strict=True):
        if isinstance(old, types.CodeType):
            same_program(old, new)
        else:
            assert old == new


def test_the_standard_library_compiles_to_the_same_instructions():
    changed = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for row in [*demo_rows(400), source_row("inventory.py")]:
            other = renamed(row, fraction=1.0, seed=3)
            try:
                before = compile(row.content, row.path, "exec", optimize=0)
            except SyntaxError:
                continue
            same_program(before, compile(other.content, row.path, "exec", optimize=0))
            changed += row.content != other.content
    assert changed > 30  # the number depends on the interpreter


@pytest.mark.parametrize("name", ["shapes.rs", "debounce.js", "store.ts", "Badge.tsx", "inventory.py"])
def test_locals_are_renamed_in_each_language(name):
    row = source_row(name)
    other = renamed(row, fraction=1.0, seed=1)
    assert other.content != row.content
    assert other == renamed(row, fraction=1.0, seed=1)
    assert replace(other, content=row.content) == row
    old, new = row.content.split("\n"), other.content.split("\n")
    assert len(old) == len(new)
    words = {word for line in set(new) - set(old) for word in NAMES if word in line}
    assert words, "the new names are plausible ones"


PYTHON = "def f(a):\n    text = a\n    {}\n    return text\n"
RUST = "fn f(a: u8) -> u8 {{\n    let text = a;\n    {}\n    text\n}}\n"
SCRIPT = "function f(a) {{\n  const text = a;\n  {}\n  return text;\n}}\n"


@pytest.mark.parametrize(
    ("language", "form", "line"),
    [
        ("python", PYTHON, "pass"),
        ("python", PYTHON, "text = [text for b in text]"),
        ("python", PYTHON, 'print(f"{text}", key=text)'),
        ("rust", RUST, "g(text);"),
        ("rust", RUST, "let other = Foo { inner: text };"),
        ("javascript", SCRIPT, "g({ key: text }, `${text}`);"),
        ("typescript", SCRIPT, "g(text as number);"),
    ],
)
def test_what_may_be_renamed(language, form, line):
    content = form.format(line)
    assert "text" not in rewritten(language, content)


@pytest.mark.parametrize(
    ("language", "form", "line"),
    [
        ("python", PYTHON, "global text"),
        ("python", PYTHON, "g = lambda: text"),
        ("python", PYTHON, "def g():\n        return text"),
        ("python", PYTHON, "class G:\n        text = 1"),
        ("python", PYTHON, "print(locals())"),
        ("python", PYTHON, 'print(f"{text=}")'),
        ("python", PYTHON, "g(text=1)"),
        ("python", PYTHON, "a.text = 1"),
        ("python", PYTHON, "import text"),
        ("python", PYTHON, "match a:\n        case 1:\n            pass"),
        ("python", "text = 1\n" + PYTHON, "pass"),
        ("python", "from m import text\n" + PYTHON, "pass"),
        ("rust", RUST, "let g = || text;"),
        ("rust", RUST, 'println!("{text}");'),
        ("rust", RUST, 'println!("{:>text$}", a);'),
        ("rust", RUST, "g(stringify!(text));"),
        ("rust", RUST, "let other = Foo { text };"),
        ("rust", RUST, "text::g();"),
        ("rust", "fn text() -> u8 {{ 1 }}\n" + RUST, "g();"),
        ("javascript", SCRIPT, "const g = () => text;"),
        ("javascript", SCRIPT, "g({ text });"),
        ("javascript", SCRIPT, "eval('text');"),
        ("javascript", SCRIPT, "const { text: b, other } = a; g(class { text = text });"),
        ("javascript", "let text = 0;\n" + SCRIPT, "g();"),
    ],
)
def test_what_must_keep_its_name(language, form, line):
    content = form.format(line)
    assert rewritten(language, content).count("text") == content.count("text")


@pytest.mark.parametrize(
    ("language", "content"),
    [
        ("rust", "fn f() -> u8 {\n    if g() {\n        let text = 1;\n        h(text);\n    }\n    text\n}\n"),
        ("rust", "fn f() -> u8 {\n    let text = text();\n    text\n}\n"),
        ("javascript", "function f() {\n  if (g()) {\n    let text = 1;\n    h(text);\n  }\n  return text;\n}\n"),
        ("python", "def f(text):\n    text = text + 1\n    return text\n"),
    ],
)
def test_a_name_that_other_code_may_use_is_kept(language, content):
    assert rewritten(language, content) == content


def test_other_languages_and_broken_files_are_left_alone():
    for row in source_rows():
        if row.language not in SCOPES:
            assert renamed(row, fraction=1.0, seed=1) is row
    broken = make_row(1, program(1) + "x = = 1\n")
    assert renamed(broken, fraction=1.0, seed=1) is broken


def test_the_fraction_is_of_the_rows():
    rows = [make_row(i, program(i)) for i in range(400)]
    changed = sum(renamed(row, fraction=0.3, seed=1) is not row for row in rows)
    assert 80 < changed < 160
    assert all(renamed(row, fraction=0.0, seed=1) is row for row in rows)


def test_rows_are_rewritten_before_their_builder_sees_them():
    rows = [row for row in all_rows(10) if row.language == "python"]
    plain, other = (
        tokenize_rows(rows, encoder(), Data(builders={"chunks": 1.0}, rename_fraction=fraction), seed=1)
        for fraction in (0.0, 1.0)
    )
    assert [s.ids.tolist() for s in plain.samples] != [s.ids.tolist() for s in other.samples]
    assert {s.file_id for s in plain.samples} == {s.file_id for s in other.samples}


@pytest.mark.parametrize(
    ("language", "head", "line", "tail"),
    [
        ("python", "def f():\n", "    v{} = {}\n", ""),
        ("rust", "fn f() {{\n", "let v{} = {};\n", "}}\n"),
        ("javascript", "function f() {{\n", "let v{} = {};\n", "}}\n"),
    ],
)
def test_a_function_with_many_names_is_fast(language: str, head: str, line: str, tail: str):
    text = head.format() + "".join(line.format(n, n) for n in range(6000)) + tail.format()
    began = time.process_time()
    assert rewritten(language, text) != text
    assert time.process_time() - began < 10  # a search name by name would take more than a minute


def test_nested_functions_are_fast():
    text = "def f():\n    x = 1\n    y = " + "lambda: " * 4000 + "x\n    z = 2\n"
    began = time.process_time()
    after = rewritten("python", text)
    assert "x = 1" in after and "z = 2" not in after
    assert time.process_time() - began < 10
