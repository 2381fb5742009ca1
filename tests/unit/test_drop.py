"""What `codelupe drop` reads and what it skips."""

import json
import os
import subprocess
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx2
import pyarrow
import pytest
from pyarrow import parquet

from db.files import NewFile
from service.errors import PreconditionError
from service.intake.drop import read_sources
from service.intake.folders import MAX_FILE_BYTES
from service.intake.formats import PassedOver
from service.intake.languages import language
from service.intake.quality import quality_score
from service.intake.records import Given


def read(*paths: Path | str, **options: Any) -> tuple[dict[str, NewFile], Counter[str]]:
    found = list(read_sources([str(path) for path in paths], Given(score=80.0), **options))
    files = {item.path or "": item for item in found if isinstance(item, NewFile)}
    return files, Counter(item.reason for item in found if isinstance(item, PassedOver))


def test_a_folder_gives_its_sources_and_lists_what_is_skipped(tmp_path: Path):
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


def test_json_lines_carry_their_own_metadata(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    lines = [
        json.dumps({"content": "fn a() {}", "language": "Rust", "path": "a.rs", "quality_score": 91}),
        json.dumps({"content": "x = 1", "path": "b.py"}),
        json.dumps({"content": "a\0b"}),
        json.dumps({"content": "\ud800"}),
        json.dumps({"title": "no content"}),
        json.dumps(["a list"]),
        "not json",
    ]
    path.write_text("\n".join(lines))
    files, skipped = read(path)
    assert (files["a.rs"].language, files["a.rs"].quality_score) == ("rust", 91.0)
    assert (files["b.py"].language, files["b.py"].quality_score) == ("python", 80.0)
    assert skipped == {"not text": 2, "row has no `content`": 1, "line is not a JSON object": 2}


def test_json_lines_that_a_database_could_not_hold_are_skipped(tmp_path: Path):
    path = tmp_path / "odd.jsonl"
    lines = [
        '{"content": "x", "repository": [5]}',
        '{"content": "x", "path": "a\\u0000b"}',
        '{"content": "x", "language": "\\ud800"}',
        '{"content": "x", "quality_score": 1e300}',
        '{"content": "x", "quality_score": NaN}',
        '{"content": "x", "quality_score": 1%s}' % ("0" * 400),
        "[" * 100_000,
        '{"content": "x", "quality_score": "high"}',
        '{"content": "x", "repository": null, "path": "", "language": null, "quality_score": null}',
    ]
    path.write_text("\n".join(lines))
    files, skipped = read(path)
    assert {name: (file.repository, file.quality_score) for name, file in files.items()} == {"odd.jsonl:9": ("odd", 80)}
    assert skipped == {
        "repository is not text": 1, "path is not text": 1, "language is not text": 1, "quality_score out of range": 3,
        "quality_score is not a number": 1, "line is not a JSON object": 1,
    }  # fmt: skip


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
    assert two.content == "user:\ndef f(x):\n\nassistant:\n    return x\n"
    assert two.metadata == {
        "messages": [{"role": "user", "content": "def f(x):"}, {"role": "assistant", "content": "    return x"}]
    }
    assert skipped == {"row has no `content`": 1, "metadata cannot be stored": 1}


def test_parquet_is_read_by_row_group(tmp_path: Path):
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
    assert len(files) == 1000 and skipped == {"row has no `content`": 1}
    assert (files["7.py"].quality_score, files["7.py"].language) == (57.0, "python")
    assert files["7.py"].metadata == {"author": "a", "at": "2026-01-01T00:00:00"}


def test_a_file_that_is_not_parquet_is_skipped(tmp_path: Path):
    (tmp_path / "odd.parquet").write_bytes(b"PAR1 and nothing else")
    _, skipped = read(tmp_path / "odd.parquet")
    assert [reason.partition(" (")[0] for reason in skipped] == ["cannot be read as Parquet"]


class Hub:
    """The Hub's two calls, served from a folder."""

    def __init__(self, files: dict[str, Path]) -> None:
        self.files = files

    def list_repo_files(self, name: str, **options: Any) -> list[str]:
        return [*self.files, "README.md"]

    def hf_hub_download(self, name: str, file: str, **options: Any) -> str:
        return str(self.files[file])


def test_a_hub_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    parquet.write_table(pyarrow.table({"content": ["x = 1", "y = 2"]}), tmp_path / "0.parquet")
    hub = Hub({"data/train-0.parquet": tmp_path / "0.parquet"})
    for name in ("list_repo_files", "hf_hub_download"):
        monkeypatch.setattr(f"huggingface_hub.{name}", getattr(hub, name))
    files, skipped = read("hf://owner/name")
    assert set(files) == {"data/train-0.parquet:1", "data/train-0.parquet:2"} and not skipped
    assert {file.repository for file in files.values()} == {"owner/name"}


def test_an_unreachable_hub_gives_one_message(monkeypatch: pytest.MonkeyPatch):
    def refuse(*arguments: Any, **options: Any) -> None:
        raise httpx2.ConnectError("connection refused")  # the Hub library uses httpx2

    monkeypatch.setattr("huggingface_hub.list_repo_files", refuse)
    with pytest.raises(
        PreconditionError, match=r"owner/name cannot be read from the Hub .*connection refused.*HF_TOKEN"
    ):
        read("hf://owner/name")


def commit(root: Path, message: str, author: str = "n") -> None:
    git = ["git", "-C", str(root), "-c", f"user.name={author}", "-c", "user.email=e@example.org"]
    for command in (["add", "-A"], ["commit", "-qm", message]):
        subprocess.run([*git, *command], check=True)


def test_a_history_gives_each_change_with_the_text_before(tmp_path: Path):
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
    assert Counter(item.reason for item in found if isinstance(item, PassedOver)) == {
        "deleted by its commit": 1, "over 100,000 bytes": 1,
    }  # fmt: skip
    assert (
        len([item for item in read_sources([str(root)], Given(), history_commits=1) if isinstance(item, NewFile)]) == 2
    )


def test_a_history_with_odd_names_and_messages(tmp_path: Path):
    """Names with quotes and line ends, messages with separators, keys, links, and files without a final newline."""
    root = tmp_path / "checkout"
    root.mkdir()
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    latin = Path(os.fsdecode(os.fsencode(root) + b"/\xe9.py"))
    for path in (root / 'say "a".py', root / "two\nlines.py", latin, root / "secrets.py", root / "id_rsa.py"):
        path.write_text("x = 1")
    (root / "link.py").symlink_to("gone")
    commit(root, "one \x1e two \x1f three", author="A\x1fB")
    (root / "link.py").unlink()
    (root / "link.py").write_text("x = 1\n")
    latin.write_text("x = 1\x0c\ny = 2")
    commit(root, "next")
    found = list(read_sources([str(root)], Given(score=80.0), history_commits=10))
    changes = [(file.path, file.metadata["message"]) for file in found if isinstance(file, NewFile)]
    first = "one \x1e two \x1f three"
    assert changes == [("?.py", "next"), ('say "a".py', first), ("two\nlines.py", first), ("?.py", first)]
    assert Counter(item.reason for item in found if isinstance(item, PassedOver)) == {"key file": 2, "not a file": 2}
    change = next(file for file in found if isinstance(file, NewFile))
    none = "\\ No newline at end of file\n"
    assert change.metadata["diff"].endswith(f"\n-x = 1\n{none}+x = 1\x0c\n+y = 2\n{none}")
    files, _ = read(root)
    assert set(files) == {"?.py", 'say "a".py', "two\nlines.py", "link.py"}  # the same names: one path, one side


def test_a_history_of_a_part_of_a_checkout_and_of_a_shallow_one(tmp_path: Path):
    root = tmp_path / "checkout"
    (root / "part").mkdir(parents=True)
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    for number in range(3):
        (root / "a.py").write_text(f"x = {number}\n")
        (root / "part" / "b.py").write_text(f"y = {number}\n")
        commit(root, f"change {number}")
    files, _ = read(root / "part", history_commits=10)
    assert set(files) == {"b.py"} == set(read(root / "part")[0])
    shallow = tmp_path / "shallow"
    subprocess.run(["git", "clone", "-q", "--depth=2", f"file://{root}", str(shallow)], check=True)
    found = list(read_sources([str(shallow)], Given(score=80.0), history_commits=10))
    assert [file.metadata["message"] for file in found if isinstance(file, NewFile)] == ["change 2"] * 2
    assert Counter(item.reason for item in found if isinstance(item, PassedOver)) == {
        "commit at the edge of a shallow clone": 2
    }


def test_a_history_that_git_cannot_read_to_its_end_is_an_error(tmp_path: Path):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    for number in range(2):
        (tmp_path / "a.py").write_text(f"x = {number}\n")
        commit(tmp_path, f"change {number}")
    named = subprocess.run(["git", "-C", str(tmp_path), "rev-parse", "HEAD~1"], capture_output=True, text=True)
    name = named.stdout.strip()
    (tmp_path / ".git" / "objects" / name[:2] / name[2:]).unlink()
    with pytest.raises(PreconditionError, match="git log could not read"):
        list(read_sources([str(tmp_path)], Given(), history_commits=10))


def test_checkouts_within_a_folder_keep_their_own_gitignore(tmp_path: Path):
    for name in ("one", "two"):
        subprocess.run(["git", "init", "-q", str(tmp_path / name)], check=True)
        (tmp_path / name / ".gitignore").write_text("built.py\n!kept_built.py\n")
        for file in (f"{name}.py", "built.py", "kept_built.py"):
            (tmp_path / name / file).write_text("x = 1\n")
    (tmp_path / "beside.py").write_text("x = 1\n")
    (tmp_path / "away").symlink_to(tmp_path / "one")
    found = [item for item in read_sources([str(tmp_path)], Given(score=1.0)) if isinstance(item, NewFile)]
    assert sorted((file.repository, file.path) for file in found) == sorted([
        (tmp_path.name, "beside.py"), ("one", "one.py"), ("one", "kept_built.py"), ("two", "two.py"),
        ("two", "kept_built.py"),
    ])  # fmt: skip
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / ".gitignore").write_text("two\n")
    files, skipped = read(tmp_path)
    assert set(files) == {"beside.py", "one.py", "kept_built.py"} and skipped["symlink"] == 1


def test_a_checkout_that_git_cannot_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Without git, `drop` could not honour .gitignore."""
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    with pytest.raises(PreconditionError, match=r"git cannot read the checkout .*safe\.directory"):
        read(tmp_path)


def test_a_hooks_environment_does_not_decide_which_checkout_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("one", "two"):
        subprocess.run(["git", "init", "-q", str(tmp_path / name)], check=True)
        (tmp_path / name / f"{name}.py").write_text("x = 1\n")
    commit(tmp_path / "one", "first")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "one" / ".git"))
    files, _ = read(tmp_path / "two")
    assert set(files) == {"two.py"} and files["two.py"].commit_sha is None


def test_files_that_cannot_be_opened_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("pipe.jsonl", "pipe.parquet", "pipe.py"):
        os.mkfifo(tmp_path / name)
        assert [
            found.reason for found in read_sources([str(tmp_path / name)], Given()) if isinstance(found, PassedOver)
        ] == ["not a file"]
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.jsonl").write_text("{}")
    scan = os.scandir

    def refuse(path: Any, *arguments: Any, **options: Any) -> Any:
        if str(path).endswith(("folder", "a.jsonl")):
            raise PermissionError(13, "Permission denied", str(path))
        return (scan if not arguments else Path.open)(path, *arguments, **options)

    monkeypatch.setattr(os, "scandir", refuse)
    assert read(tmp_path)[1]["folder cannot be read (Permission denied)"] == 1
    monkeypatch.setattr(Path, "open", refuse)
    assert [
        found.reason for found in read_sources([str(tmp_path / "a.jsonl")], Given()) if isinstance(found, PassedOver)
    ] == ["cannot be read (Permission denied)"]


def test_text_about_a_nul_character_is_text(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    rows = [
        {"prompt": r"char end = '\u0000';", "completion": "x", "path": "a.java"},
        {"content": "x", "metadata": {"before": "\\\\u0000"}, "path": "b.java"},
        {"content": "x", "metadata": {"before": "\\\0"}},
    ]
    path.write_text("\n\n".join(map(json.dumps, rows)) + "\n\n")
    files, skipped = read(path)
    assert set(files) == {"a.java", "b.java"} and skipped == {"metadata cannot be stored": 1}


def test_parquet_with_bytes_and_times(tmp_path: Path):
    offsets, data = pyarrow.py_buffer(b"\0\0\0\0\2\0\0\0\4\0\0\0"), pyarrow.py_buffer(b"ok\xff\xfe")
    content = pyarrow.Array.from_buffers(pyarrow.string(), 2, [None, offsets, data])
    times = pyarrow.array([{"at": 2**62}, {"at": 0}], pyarrow.struct([("at", pyarrow.timestamp("us"))]))
    parquet.write_table(pyarrow.table({"content": content}), tmp_path / "a.parquet")
    parquet.write_table(pyarrow.table({"content": ["x", "y"], "metadata": times}), tmp_path / "b.parquet")
    parquet.write_table(pyarrow.table({"title": ["x"]}), tmp_path / "c.parquet")
    files, skipped = read(*(tmp_path / f"{name}.parquet" for name in "abc"))
    assert set(files) == {"a.parquet:1", "b.parquet:2"}
    assert skipped == {"not UTF-8": 1, "row has a value out of range": 1, "row has no `content`": 1}


def test_a_folder_without_history_says_so(tmp_path: Path):
    assert [
        found.reason
        for found in read_sources([str(tmp_path)], Given(), history_commits=5)
        if isinstance(found, PassedOver)
    ] == ["folder has no git history"]


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


def test_files_without_a_score_get_one(tmp_path: Path):
    good = "".join(f"value_{n} = compute({n}, other_{n})\n" for n in range(20))
    for name, content in (("good.py", good), ("odd.py", "x = 1\n" * 50), ("data.py", "{[(,)]}\n<><><>\n" * 40)):
        (tmp_path / name).write_text(content)
    scores = {
        file.path: file.quality_score for file in read_sources([str(tmp_path)], Given()) if isinstance(file, NewFile)
    }
    assert scores["good.py"] == 100.0
    assert scores["odd.py"] < 75 and scores["data.py"] < 60
    assert quality_score("") == 0.0


def tree(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x = 1\n")
    return root


OTHERS = ("node_modules/left/m.js", "env/lib/m.py", "app/dist/m.js", "build/lib/m.py", "vendor/m.go", "Pods/a.m")
OWN = ("src/m.py", "src/target/m.py", "pkg/build/m.py", "pkg/build/__init__.py", "main.py")


def test_other_peoples_code_is_passed_over_by_name(tmp_path: Path):
    root = tree(tmp_path, *OTHERS, *OWN)
    (root / "env" / "pyvenv.cfg").write_text("home = /usr\n")
    found = list(read_sources([str(root)], Given()))
    assert {item.path for item in found if isinstance(item, NewFile)} == set(OWN)
    passed = {item.name for item in found if isinstance(item, PassedOver) and item.reason == "vendored"}
    assert passed == {*OTHERS, "env/pyvenv.cfg"}
    everything = list(read_sources([str(root)], Given(include_vendored=True)))
    assert {item.path for item in everything if isinstance(item, NewFile)} == {*OWN, *OTHERS}
    for named in (root / "vendor", root / "node_modules" / "left" / "m.js"):
        assert len(read(named)[0]) == 1


@pytest.mark.parametrize("checkout", [False, True])
def test_the_folder_of_a_training_is_passed_over(tmp_path: Path, checkout: bool):
    root = tree(tmp_path, "main.py", "runs/kept.py", "var/trainings/x/runs/000001/held_out.py", "var/trainings/x/m.py")
    (root / "var" / "trainings" / "x" / "instance-id").write_text("a1b2\n")
    if checkout:
        subprocess.run(["git", "init", "-q", str(root)], check=True)
    files, skipped = read(root)
    assert set(files) == {"main.py", "runs/kept.py"} and skipped == {"vendored": 3}
    assert len(read(root / "var" / "trainings" / "x")[0]) == 2  # it was named


def test_what_git_tracks_is_the_projects_own(tmp_path: Path):
    root = tree(tmp_path, "vendor/kept.go", "main.go")
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    commit(root, "first")
    tree(root, "node_modules/left/m.js", "new.go")
    files, skipped = read(root)
    assert set(files) == {"vendor/kept.go", "main.go", "new.go"} and skipped == {"vendored": 1}


def test_encodings_notebooks_and_pointers_of_a_folder(tmp_path: Path):
    (tmp_path / "wide.py").write_text("x = 'ä'\r\n", encoding="utf-16", newline="")
    (tmp_path / "old.py").write_bytes(b"# coding: latin-1\nx = '\xe4'\n")
    (tmp_path / "mark.py").write_bytes(b"\xef\xbb\xbfx = 1\r\n")
    cells = [{"cell_type": "code", "source": "x = 1"}]
    (tmp_path / "a.ipynb").write_text(json.dumps({"cells": cells, "metadata": {"kernelspec": {"language": "R"}}}))
    (tmp_path / "b.ipynb").write_text("{}")
    (tmp_path / "model.py").write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 1\n")
    files, skipped = read(tmp_path)
    assert {name: (file.language, file.content) for name, file in files.items()} == {
        "a.ipynb": ("r", "x = 1\n"), "mark.py": ("python", "x = 1\n"), "wide.py": ("python", "x = 'ä'\n"),
        "old.py": ("python", "# coding: utf-8\nx = 'ä'\n"),
    }  # fmt: skip
    assert skipped == {"Git LFS pointer": 1, "not a notebook": 1}


def test_records_and_changes_have_plain_line_ends_too(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    turns = {"prompt": "\ufeffhi\r\n", "completion": "there\r"}
    path.write_text("\n".join(map(json.dumps, [{"content": "\ufeffx = 1\r\ny = 2\r", "path": "a.py"}, turns])))
    files, _ = read(path)
    assert files["a.py"].content == "x = 1\ny = 2\n"
    messages = files["rows.jsonl:2"].metadata["messages"]
    assert [turn["content"] for turn in messages] == ["hi\n", "there\n"]
    root = tmp_path / "checkout"
    root.mkdir()
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    for text in ("x = 1\r\n", "x = 2\r\n"):
        (root / "a.py").write_bytes(text.encode())
        commit(root, "change")
    files, _ = read(root, history_commits=1)
    assert (files["a.py"].content, files["a.py"].metadata["before"]) == ("x = 2\n", "x = 1\n")
    assert "\r" not in files["a.py"].metadata["diff"]
