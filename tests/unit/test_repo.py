"""Repository samples join files in import order and count the tokens of every row."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from run_folder import encoder, make_row, make_run, program, run, short_recipe, short_rows, tokenizer
from source_rows import LANGUAGES, source_rows

from trainer.data.encoder import IGNORED
from trainer.data.tokenize import tokenize_rows
from trainer.recipe import Data
from trainer.records import Row, read_outcomes
from trainer.samples.imports import import_order
from trainer.samples.repo import build_repository
from trainer.samples.sample import Text

DATA = Data(builders={"repo": 1.0}, max_length=512)


def rows_of(files: dict[str, str], *, repository: str = "me/project") -> list[Row]:
    return [
        replace(
            make_row(number, content, path=path),
            repository=repository,
            language=LANGUAGES.get(path.rpartition(".")[2], "text"),
        )
        for number, (path, content) in enumerate(files.items(), 1)
    ]


REPOSITORIES = {
    "python": {
        "app/main.py": "from app import models\nfrom app.deep.store import Store as S\nimport json\n",
        "app/models.py": "from .deep import store\nfrom . import units\n",
        "app/deep/store.py": "from ..units import metre\nfrom .. import units as u\n",
        "app/units.py": "import math\n",
        "app/__init__.py": "NAME = 1\n",
    },
    "rust": {
        "src/main.rs": "mod store;\nmod units;\nuse crate::store::{open, Store};\n",
        "src/store/mod.rs": "pub mod disk;\nuse crate::units::Metre;\nuse std::fmt;\n",
        "src/store/disk.rs": "use crate::units::Metre as M;\n",
        "src/units.rs": "pub struct Metre(f64);\n",
    },
    "go": {
        "cmd/main.go": 'package main\n\nimport (\n\t"fmt"\n\n\ts "example.org/me/project/store"\n)\n',
        "store/store.go": 'package store\n\nimport "example.org/me/project/units"\n',
        "units/units.go": "package units\n",
    },
    "javascript": {
        "src/index.js": "import { a } from './store/index.js';\nexport * from \"./units\";\nimport fs from 'fs';\n",
        "src/store/index.js": "const units = require('../units');\n",
        "src/units.js": "export const metre = 1;\n",
    },
    "typescript": {
        "src/app.ts": "import { Store } from './store.js';\nimport { Badge } from './badge';\n",
        "src/badge.tsx": "import type { Store } from './store';\n",
        "src/store.ts": "export class Store {}\n",
    },
    "java": {
        "src/org/example/Main.java": "package org.example;\n\nimport org.example.deep.Store;\n",
        "src/org/example/deep/Store.java": "package org.example.deep;\n\nimport static org.example.Units.METRE;\n",
        "src/org/example/Units.java": "package org.example;\n",
    },
    "c": {
        "src/main.c": '#include <stdio.h>\n#include "store.h"\n',
        "src/store.h": '#include "../include/units.h"\n',
        "include/units.h": "typedef int metre;\n",
    },
}
ORDERS = {
    "python": ["app/__init__.py", "app/units.py", "app/deep/store.py", "app/models.py", "app/main.py"],
    "rust": ["src/units.rs", "src/store/disk.rs", "src/store/mod.rs", "src/main.rs"],
    "go": ["units/units.go", "store/store.go", "cmd/main.go"],
    "javascript": ["src/units.js", "src/store/index.js", "src/index.js"],
    "typescript": ["src/store.ts", "src/badge.tsx", "src/app.ts"],
    "java": ["src/org/example/Units.java", "src/org/example/deep/Store.java", "src/org/example/Main.java"],
    "c": ["include/units.h", "src/store.h", "src/main.c"],
}


@pytest.mark.parametrize("language", REPOSITORIES)
def test_what_a_file_imports_comes_before_it(language):
    rows = rows_of(REPOSITORIES[language])
    if language == "c":
        rows = [replace(row, language="c") for row in rows]
    for seed in range(5):
        random.Random(seed).shuffle(rows)
        assert [row.path for row in import_order(rows)] == ORDERS[language]


def test_files_that_import_each_other_and_files_without_a_grammar():
    circle = {f"{name}.py": f"import {other}\n" for name, other in [("a", "b"), ("b", "c"), ("c", "a")]}
    rows = rows_of({"z.txt": "notes", **circle, "main.py": "import a\n"})
    assert [row.path for row in import_order(rows)] == ["z.txt", "a.py", "c.py", "b.py", "main.py"]
    twice = [replace(row, path="same.py") for row in rows]
    assert [row.file_id for row in import_order(twice)] == [1, 2, 3, 4, 5]
    assert [row.path for row in import_order([replace(row, path=None) for row in rows[:1]])] == [None]


def test_the_format_and_the_loss():
    rows = rows_of(REPOSITORIES["python"])
    document = build_repository(rows)
    (encoded,) = encoder().encode([document])
    by_path = {row.path: row for row in rows}
    expected = "<|repo_name|>me/project\n" + "".join(
        f"<|file_sep|>{path}\n{by_path[path].content}" for path in ORDERS["python"]
    )
    assert tokenizer().decode(encoded.ids.tolist()) == f"{expected}<|endoftext|>"
    learned = tokenizer().decode(encoded.labels[encoded.labels != IGNORED].tolist())
    assert learned == "<|file_sep|>".join(by_path[path].content for path in ORDERS["python"]) + "<|endoftext|>"
    assert dict(encoded.shares).keys() == {row.file_id for row in rows}
    assert sum(dict(encoded.shares).values()) == encoded.tokens
    texts = Counter(piece.file_id for piece in document.pieces if isinstance(piece, Text))
    assert all(texts[row.file_id] == 2 for row in rows)


def test_a_repository_is_taken_whole_or_not_at_all():
    rows = [replace(row, file_id=n, repository=f"r{n % 40}") for n, row in enumerate(source_rows() * 20)]
    data = Data(builders={"repo": 0.5, "chunks": 0.5}, max_length=512)
    made = tokenize_rows(rows, encoder(), data, seed=1)
    kinds: dict[str, set[str]] = {}
    repository = {row.file_id: row.repository for row in rows}
    for sample in made.samples:
        for file_id, _ in sample.shares:
            kinds.setdefault(repository[file_id], set()).add(sample.kind)
    assert all(len(kind) == 1 for kind in kinds.values())
    assert 8 < sum(kind == {"repo"} for kind in kinds.values()) < 32
    assert {file_id for sample in made.samples for file_id, _ in sample.shares} == set(made.file_ids)


def test_rows_without_a_repository_or_a_text():
    rows = rows_of({"a.py": "x = 1\n", "b.py": " \n", "c.py": "y = 2\n"})
    rows[2] = replace(rows[2], repository=None)
    made = tokenize_rows(rows, encoder(), DATA, seed=1)
    assert made.rejected == {2: "empty", 3: "no_repository"}
    assert [dict(sample.shares).keys() for sample in made.samples] == [{1}]
    both = tokenize_rows(rows, encoder(), replace(DATA, builders={"repo": 9.0, "chunks": 0.1}), seed=1)
    assert 3 not in both.rejected


def test_a_planted_separator_stays_text():
    rows = rows_of({"a.py": "x = '<|file_sep|>'\n", "<|repo_name|>.py": "y = 2\n"}, repository="<|endoftext|>")
    (encoded,) = encoder().encode([build_repository(rows)])
    names = [tokenizer().convert_ids_to_tokens(i) for i in encoded.ids.tolist() if i in encoder().added]
    assert names == ["<|repo_name|>", "<|file_sep|>", "<|file_sep|>", "<|endoftext|>"]


def test_every_row_of_a_trained_repository_is_trained(tmp_path):
    recipe = short_recipe(data__builders={"repo": 1.0})
    rows = [replace(make_row(n, program(n, 8)), repository=f"r{n % 3}") for n in range(1, 13)]
    directory = make_run(tmp_path / "run", recipe, rows, short_rows(4, start=101))
    assert run(directory) == 0
    outcomes = {outcome.file_id: outcome for outcome in read_outcomes(directory.rows_outcome)}
    made = tokenize_rows(rows, encoder(), recipe.data, seed=42)
    tokens: Counter[int] = Counter()
    for sample in made.samples:
        tokens.update(dict(sample.shares))
    trained = [outcome for outcome in outcomes.values() if outcome.outcome == "trained"]
    assert trained and {o.outcome for o in outcomes.values()} <= {"trained", "held_out", "unused"}
    for outcome in trained:
        assert 0 < outcome.tokens <= tokens[outcome.file_id] and outcome.samples >= 1
    if len(trained) == len(rows):
        assert all(o.tokens == tokens[o.file_id] for o in trained)
