"""What `codelupe drop` reads, and what it passes over."""

import json
import os
import subprocess
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pyarrow
import pytest
from pyarrow import parquet

from db.files import NewFile
from service.errors import PreconditionError
from service.intake.drop import MAX_FILE_BYTES, read_sources
from service.intake.languages import language
from service.intake.quality import quality_score
from service.intake.records import Given


def read(*paths: Path | str, **options: Any) -> tuple[dict[str, NewFile], Counter[str]]:
    found = list(read_sources([str(path) for path in paths], Given(score=80.0), **options))
    files = {item.path or "": item for item in found if isinstance(item, NewFile)}
    return files, Counter(item for item in found if isinstance(item, str))


def test_a_folder_gives_its_sources_and_says_what_it_leaves(tmp_path: Path):
    root = tmp_path / "project"
    (root / "pkg").mkdir(parents=True)
    (root / "pkg" / "a.py").write_text("print('ä')\n")
    (root / "main.rs").write_text("fn main() {}\n")
    (root / ".env").write_text("SECRET=1\n")
    (root / "deploy.pem").write_text("key\n")
    (root / "credentials.py").write_text("password = 1\n")
    (root / "picture.png").write_bytes(b"\x89PNG")
    (root / "latin.py").write_bytes(b"# \xe9\n")
    (root / "nul.py").write_bytes(b"a\0b")
    (root / "big.py").write_text("x" * (MAX_FILE_BYTES + 1))
    (root / "link.py").symlink_to(root / "main.rs")
    files, skipped = read(root)
    assert {name: file.language for name, file in files.items()} == {"pkg/a.py": "python", "main.rs": "rust"}
    assert files["pkg/a.py"].repository == "project"
    assert files["pkg/a.py"].quality_score == 80.0
    assert skipped == {
        "dotfile": 1, "key file": 2, "not a known language": 1, "not UTF-8": 1, "not text": 1,
        f"over {MAX_FILE_BYTES:,} bytes": 1, "symlink": 1,
    }  # fmt: skip


def test_a_symlink_out_of_the_folder_is_not_followed(tmp_path: Path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.py").write_text("x = 1\n")
    root = tmp_path / "project"
    root.mkdir()
    (root / "away").symlink_to(outside)
    files, _ = read(root)
    assert files == {}


def test_a_checkout_honours_gitignore_and_brings_its_commit(tmp_path: Path):
    root = tmp_path / "checkout"
    root.mkdir()
    (root / ".gitignore").write_text("built.py\n")
    (root / "built.py").write_text("x = 1\n")
    (root / "kept.py").write_text("x = 2\n")
    git = ["git", "-C", str(root), "-c", "user.name=n", "-c", "user.email=e@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    files, _ = read(root)
    assert set(files) == {"kept.py"}
    assert len(files["kept.py"].commit_sha or "") == 40


def test_a_checkout_without_a_commit_honours_gitignore_too(tmp_path: Path):
    (tmp_path / ".gitignore").write_text("built.py\n")
    (tmp_path / "built.py").write_text("x = 1\n")
    (tmp_path / "kept.py").write_text("x = 2\n")
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    files, _ = read(tmp_path)
    assert set(files) == {"kept.py"} and files["kept.py"].commit_sha is None


def test_json_lines_bring_their_own_facts(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    lines = [
        json.dumps({"content": "fn a() {}", "language": "Rust", "path": "a.rs", "quality_score": 91}),
        json.dumps({"content": "x = 1", "path": "b.py"}),
        json.dumps({"content": "a\0b"}),
        json.dumps({"content": "\ud800"}),
        json.dumps({"text": "no content"}),
        json.dumps(["a list"]),
        "not json",
    ]
    path.write_text("\n".join(lines))
    files, skipped = read(path)
    assert (files["a.rs"].language, files["a.rs"].quality_score) == ("rust", 91.0)
    assert (files["b.py"].language, files["b.py"].quality_score) == ("python", 80.0)
    assert skipped == {"not text": 2, "row without a content": 1, "line that is no JSON object": 2}


def test_json_lines_that_a_database_could_not_hold_are_passed_over(tmp_path: Path):
    path = tmp_path / "odd.jsonl"
    lines = [
        '{"content": "x", "repository": 5}',
        '{"content": "x", "path": "a\\u0000b"}',
        '{"content": "x", "language": "\\ud800"}',
        '{"content": "x", "quality_score": 1e300}',
        '{"content": "x", "quality_score": NaN}',
        '{"content": "x", "quality_score": 1%s}' % ("0" * 400),
        "[" * 100_000,
        '{"content": "x", "repository": null, "path": "", "language": null, "quality_score": "high"}',
    ]
    path.write_text("\n".join(lines))
    files, skipped = read(path)
    assert {name: (file.repository, file.quality_score) for name, file in files.items()} == {"odd.jsonl:8": ("odd", 80)}
    assert skipped == {"not text": 3, "quality_score out of range": 3, "line that is no JSON object": 1}


def test_a_folder_whose_name_is_not_utf8_can_be_dropped(tmp_path: Path):
    root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/pro\xe9"))
    root.mkdir()
    (root / "a.py").write_text("x = 1\n")
    files, _ = read(root)
    assert files["a.py"].repository == "pro?"


def test_pairs_and_training_content(tmp_path: Path):
    path = tmp_path / "pairs.jsonl"
    lines = [
        {
            "training_content": "fn a() {}",
            "path": "a.rs",
            "phase": "two",
            "license": "MIT",
            "metadata": {"author": "x"},
        },
        {"prompt": "def f(x):", "completion": "    return x", "path": "b.py"},
        {"prompt": "no completion"},
        {"content": "x", "metadata": {"a": "\0"}},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    files, skipped = read(path)
    one, two = files["a.rs"], files["b.py"]
    assert (one.content, one.phase, one.license, one.metadata) == ("fn a() {}", "two", "MIT", {"author": "x"})
    assert two.content == "def f(x):\n    return x"
    assert two.metadata == {"prompt": "def f(x):", "completion": "    return x"}
    assert skipped == {"row without a content": 1, "metadata that cannot be stored": 1}


def test_parquet_is_read_a_group_at_a_time(tmp_path: Path):
    path = tmp_path / "rows.parquet"
    table = pyarrow.table({
        "content": [f"x = {n}" for n in range(1000)] + [None],
        "path": [f"{n}.py" for n in range(1000)] + ["none.py"],
        "quality_score": [50.0 + n % 50 for n in range(1001)],
        "metadata": [{"author": "a", "at": datetime(2026, 1, 1)}] * 1001,
        "other": [b"not asked for"] * 1001,
    })  # fmt: skip
    parquet.write_table(table, path, row_group_size=100)
    files, skipped = read(path)
    assert len(files) == 1000 and skipped == {"row without a content": 1}
    assert (files["7.py"].quality_score, files["7.py"].language) == (57.0, "python")
    assert files["7.py"].metadata == {"author": "a", "at": "2026-01-01T00:00:00"}


def test_what_is_no_parquet_is_passed_over(tmp_path: Path):
    (tmp_path / "odd.parquet").write_bytes(b"PAR1 and nothing else")
    _, skipped = read(tmp_path / "odd.parquet")
    assert [reason.partition(" (")[0] for reason in skipped] == ["cannot be read as Parquet"]


class Hub:
    """The Hub's two calls, over a folder."""

    def __init__(self, files: dict[str, Path]) -> None:
        self.files = files

    def list_repo_files(self, name: str, **options: Any) -> list[str]:
        return [*self.files, "README.md"]

    def hf_hub_download(self, name: str, file: str, **options: Any) -> str:
        return str(self.files[file])


def test_a_dataset_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    parquet.write_table(pyarrow.table({"content": ["x = 1", "y = 2"]}), tmp_path / "0.parquet")
    hub = Hub({"data/train-0.parquet": tmp_path / "0.parquet"})
    for name in ("list_repo_files", "hf_hub_download"):
        monkeypatch.setattr(f"huggingface_hub.{name}", getattr(hub, name))
    files, skipped = read("hf://owner/name")
    assert set(files) == {"data/train-0.parquet:1", "data/train-0.parquet:2"} and not skipped
    assert {file.repository for file in files.values()} == {"owner/name"}


def test_a_hub_that_does_not_answer_is_one_message(monkeypatch: pytest.MonkeyPatch):
    def refuse(*arguments: Any, **options: Any) -> None:
        raise httpx.ConnectError("connection refused")

    monkeypatch.setattr("huggingface_hub.list_repo_files", refuse)
    with pytest.raises(
        PreconditionError, match=r"owner/name cannot be read from the Hub .*connection refused.*HF_TOKEN"
    ):
        read("hf://owner/name")


def commit(root: Path, message: str, author: str = "n") -> None:
    git = ["git", "-C", str(root), "-c", f"user.name={author}", "-c", "user.email=e@example.org"]
    for command in (["add", "-A"], ["commit", "-qm", message]):
        subprocess.run([*git, *command], check=True)


def test_a_history_gives_each_change_with_what_was_before(tmp_path: Path):
    root = tmp_path / "checkout"
    root.mkdir()
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    (root / "a.py").write_text("x = 1\ny = 2\n")
    (root / "gone.py").write_text("z = 3\n")
    commit(root, "first")
    (root / "a.py").write_text("x = 1\ny = 3\n")
    (root / "gone.py").unlink()
    (root / "ü b.rs").write_text("fn main() {}\n")
    (root / "big.py").write_text("x = 1\n" * 20_000)
    commit(root, "second: \u00fc\n\nwhy", author="Zoë")
    found = list(read_sources([str(root)], Given(score=80.0), history_commits=10))
    files = [item for item in found if isinstance(item, NewFile)]
    assert [(file.path, file.phase) for file in files] == [
        ("a.py", "commits"), ("ü b.rs", "commits"), ("a.py", "commits"), ("gone.py", "commits"),
    ]  # fmt: skip
    change = files[0]
    assert change.content == "x = 1\ny = 3\n" and change.metadata["before"] == "x = 1\ny = 2\n"
    assert (change.metadata["message"], change.metadata["author"]) == ("second: ü\n\nwhy", "Zoë")
    assert "-y = 2\n+y = 3\n" in change.metadata["diff"] and len(change.commit_sha or "") == 40
    assert files[2].metadata["before"] == "" and files[2].commit_sha != change.commit_sha
    assert Counter(item for item in found if isinstance(item, str)) == {
        "deleted by its commit": 1, "over 100,000 bytes": 1,
    }  # fmt: skip
    assert (
        len([item for item in read_sources([str(root)], Given(), history_commits=1) if isinstance(item, NewFile)]) == 2
    )


def test_a_folder_without_history_says_so(tmp_path: Path):
    assert list(read_sources([str(tmp_path)], Given(), history_commits=5)) == ["folder without a git history"]


@pytest.mark.parametrize(
    ("name", "content", "spoken"),
    [
        ("a.PY", "", "python"),
        ("Makefile", "all:\n", "makefile"),
        ("tool", "#!/usr/bin/env python3\nprint()\n", "python"),
        ("tool", "#!/bin/sh -e\n", "bash"),
        ("tool", "#!/usr/bin/env -S node --x\n", "javascript"),
        ("a.h", "namespace a {\n", "cpp"),
        ("a.h", "int f(void);\n", "c"),
        ("main", 'package main\n\nimport "fmt"\n', "go"),
        ("notes", "package deals for all\n", None),
        ("notes", "#!/usr/bin/env unheard-of\n", None),
        ("a.txt", "nothing\n", None),
    ],
)
def test_the_language_is_in_the_name_or_in_the_text(name: str, content: str, spoken: str | None):
    assert language(name, content) == spoken


def test_a_program_without_an_extension_is_read(tmp_path: Path):
    (tmp_path / "tool").write_text("#!/usr/bin/env python3\nprint(1)\n")
    (tmp_path / "LICENSE").write_text("Permission is hereby granted\n")
    (tmp_path / "notes.txt").write_text("#!/bin/sh\n")
    files, skipped = read(tmp_path)
    assert set(files) == {"tool"} and skipped == {"not a known language": 2}


def test_a_score_where_the_source_has_none(tmp_path: Path):
    good = "".join(f"value_{n} = compute({n}, other_{n})\n" for n in range(20))
    for name, content in (("good.py", good), ("odd.py", "x = 1\n" * 50), ("data.py", "{[(,)]}\n<><><>\n" * 40)):
        (tmp_path / name).write_text(content)
    scores = {
        file.path: file.quality_score for file in read_sources([str(tmp_path)], Given()) if isinstance(file, NewFile)
    }
    assert scores["good.py"] == 100.0
    assert scores["odd.py"] < 75 and scores["data.py"] < 60
    assert quality_score("") == 0.0
