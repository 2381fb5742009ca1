"""What `codelupe drop` reads, and what it passes over."""

import json
import os
import subprocess
from collections import Counter
from pathlib import Path

from db.source import NewFile
from service.intake.drop import MAX_FILE_BYTES, read_paths


def read(*paths: Path) -> tuple[dict[str, NewFile], Counter[str]]:
    found = list(read_paths(list(paths), score=80.0, repository=None))
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
    assert skipped == {"not text": 2, "JSONL line without a content": 3}


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
    assert skipped == {"not text": 3, "quality_score out of range": 3, "JSONL line without a content": 1}


def test_a_folder_whose_name_is_not_utf8_can_be_dropped(tmp_path: Path):
    root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/pro\xe9"))
    root.mkdir()
    (root / "a.py").write_text("x = 1\n")
    files, _ = read(root)
    assert files["a.py"].repository == "pro?"
