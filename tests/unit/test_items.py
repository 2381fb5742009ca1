"""Items are whole functions, types and modules of a file with their comments and attributes, counted by kind."""

from __future__ import annotations

import ast
import json
import textwrap
from collections import Counter
from dataclasses import replace

import pytest
from run_folder import encoder, make_row, make_run, run, short_recipe, short_rows, tokenizer
from source_rows import all_rows, source_row, source_rows

from trainer.data.encoder import IGNORED
from trainer.data.tokenize import tokenize_rows
from trainer.recipe import Data
from trainer.records import Row
from trainer.samples.items import ITEMS, MAX_DEPTH, MIN_BYTES, build_items
from trainer.samples.sample import Control, Rejected, Text
from trainer.samples.syntax import GRAMMARS, parse

DATA = Data(builders={"items": 1.0}, max_length=512)


def items_of(row: Row) -> list[tuple[str, str]]:
    """Return the kind and text of each sample. The file itself comes first."""
    found = []
    for document in build_items(row, DATA, seed=1):
        text, end = document.pieces
        assert isinstance(text, Text) and text.supervised and end == Control(role="end", supervised=True)
        found.append((document.kind, text.text))
    return found


def test_every_language_defines_its_items():
    assert ITEMS.keys() == GRAMMARS.keys()


@pytest.mark.parametrize("row", all_rows(60), ids=lambda row: row.path)
def test_items_are_whole_lines_of_their_file(row):
    (kind, whole), *items = items_of(row)
    assert (kind, whole) == ("file", row.content)
    for kind, text in items:
        assert text in row.content and len(text.encode()) >= MIN_BYTES
        assert f"\n{row.content}".find(f"\n{text}") >= 0, "it begins where a line begins"
        assert parse(row.language, textwrap.dedent(text), row.path) is not None or row.language in ("java", "cpp"), kind


EXPECTED = {
    "shapes.rs": {
        "trait": 1,
        "struct": 1,
        "enum": 1,
        "macro": 1,
        "impl": 2,
        "function": 3,
        "module": 3,
        "macro_call": 1,
    },
    "queue.go": {"type": 1, "function": 1, "method": 1},
    "debounce.js": {"function": 3, "class": 1},
    "store.ts": {"interface": 1, "type": 1, "enum": 1, "class": 1, "function": 2},
    "Badge.tsx": {"type": 1, "function": 1},
    "Ring.java": {"class": 1, "method": 1, "interface": 1},
    "buffer.c": {"struct": 1, "type": 1, "function": 2},
    "matrix.cpp": {"module": 1, "struct": 1, "class": 1, "function": 2},
    "inventory.py": {"class": 1, "function": 4},
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_items_of_each_language(name):
    assert Counter(kind for kind, _ in items_of(source_row(name))[1:]) == EXPECTED[name]


def test_attributes_and_comments_stay_with_their_item_and_others_do_not():
    texts = [text for _, text in items_of(source_row("shapes.rs"))[1:]]
    assert any(text.startswith("/// A rectangle, sides in metres.\n#[derive(Debug, ") for text in texts)
    assert any(text.startswith("/// The sum of all areas.\n#[must_use]\npub fn") for text in texts)
    assert any(text.startswith("#[cfg(test)]\nmod tests") for text in texts)
    assert any(text.startswith("    /// From a pair.\n    pub fn from_pair") for text in texts), (
        "nested, as it is indented"
    )
    assert any(text.startswith("        pub fn limit()") for text in texts), "nested twice"
    assert not any("belongs to nothing" in text for text in texts)
    assert not any(text.lstrip().startswith("fn private_helper") for text in texts)
    python = [text for _, text in items_of(source_row("inventory.py"))[1:]]
    assert python[0].startswith("# How a part is counted.\n@dataclass(frozen=True)\nclass Part:")
    assert python[1].startswith("@functools.cache\ndef load") and python[-1].startswith("    def conditional")
    script = [text for _, text in items_of(source_row("store.ts"))[1:]]
    assert any(text.startswith("@sealed\nexport class Store") for text in script)
    c = [text for _, text in items_of(source_row("buffer.c"))[1:]]
    assert c[0].startswith("/* A buffer that grows. */\nstruct buffer {") and c[0].endswith("};\n")
    assert items_of(source_row("matrix.cpp"))[1][1].endswith("}  // namespace demo\n")


def test_a_comment_after_code_belongs_to_no_item():
    content = (
        "LIMIT = 5  # not about the function\ndef first(values, limit=LIMIT):\n    return values[:limit]\n\n\nx = 1\n"
    )
    assert items_of(make_row(1, content))[1] == ("function", content.partition("\n")[2].partition("\n\n\n")[0] + "\n")


def test_python_items_compile():
    found = 0
    for row in all_rows(80):
        if row.language == "python":
            for _, text in items_of(row)[1:]:
                ast.parse(textwrap.dedent(text))
                found += 1
    assert found > 200


def test_a_file_without_a_tree_has_no_items():
    row = replace(make_row(1, "IDENTIFICATION DIVISION.\n"), language="cobol")
    assert [kind for kind, _ in items_of(row)] == ["file"]
    with pytest.raises(Rejected, match="empty"):
        items_of(make_row(1, " \n"))


def test_an_item_longer_than_a_window_is_cut_into_windows():
    content = (
        "def long(x):\n" + "".join(f"    x = compute({i}, x)\n" for i in range(300)) + "    return x\n\n\nTAIL = 1\n"
    )
    rows = tokenize_rows([make_row(1, content)], encoder(), DATA, seed=1)
    kinds = Counter(sample.kind for sample in rows.samples)
    assert kinds["file"] > 3 and kinds["function"] > 3
    learned = [
        label
        for sample in rows.samples
        if sample.kind == "function"
        for label in sample.labels.tolist()
        if label != IGNORED
    ]
    assert tokenizer().decode(learned).endswith("return x\n<|endoftext|>")


def test_the_kinds_of_a_run_are_counted(tmp_path):
    recipe = short_recipe(data__builders={"items": 1.0})
    directory = make_run(tmp_path / "run", recipe, [*source_rows(), make_row(77, "\n")], short_rows(3, start=101))
    assert run(directory) == 0
    stats = json.loads(directory.dataset_stats.read_text())
    samples = stats["rows"]["samples"]
    assert stats["rows"]["rows"] == 10 and stats["rows"]["rejected"] == {"empty": 1}
    assert samples["trait"]["samples"] == 1 and samples["impl"]["samples"] == 2 and samples["file"]["samples"] >= 9
    assert all(0 < kind["supervised_tokens"] < kind["tokens"] for kind in samples.values())
    assert stats["held_out"]["samples"].keys() == {"file"}, "a file that is one function"
    report = json.loads(directory.report.read_text())
    assert report["train"]["samples"] == sum(kind["samples"] for kind in samples.values())


@pytest.mark.parametrize(
    ("language", "opened", "closed"),
    [
        ("rust", "mod a_module_of_many {\n", "}\n"),
        ("cpp", "namespace one_of_many {\n", "}\n"),
        ("java", "class OneOfMany {\n", "}\n"),
        ("typescript", "namespace one_of_many {\n", "}\n"),
        ("python", "class OneOfMany:\n", ""),
    ],
)
def test_nested_items_are_not_repeated_at_every_level(language: str, opened: str, closed: str):
    """Otherwise the output would be quadratic: gigabytes from a file of some hundred kilobytes."""

    def nest(depth: int) -> list[str]:
        indent = [" " * level if language == "python" else "" for level in range(depth)]
        inner = " " * depth + ("pass  # " if not closed else "// ") + "x" * MIN_BYTES + "\n"
        text = "".join(place + opened for place in indent) + inner + closed * depth
        return [text for _, text in items_of(replace(make_row(1, text), language=language))]

    file, *deep = nest(300)
    assert sum(map(len, deep)) <= MAX_DEPTH * len(file)
    if closed:  # the file itself is not an item
        assert len(deep) == MAX_DEPTH - 1 == len(nest(MAX_DEPTH)[1:])
