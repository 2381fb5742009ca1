"""Odd checkouts: damaged, bare, ignored. `drop` never takes what .gitignore excludes, and nothing without a reason."""

import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from db.files import NewFile
from service.errors import PreconditionError
from service.intake.drop import read_sources
from service.intake.formats import PassedOver
from service.intake.records import Given


def read(path: Path, **options: int) -> tuple[list[tuple[str | None, str | None]], Counter[str]]:
    found = list(read_sources([str(path)], Given(score=80.0), **options))
    files = [(item.repository, item.path) for item in found if isinstance(item, NewFile)]
    return sorted(files), Counter(item.reason for item in found if isinstance(item, PassedOver))


def git(root: Path, *arguments: str) -> None:
    command = ["git", "-C", str(root), "-c", "user.name=n", "-c", "user.email=e@example.org"]
    subprocess.run([*command, "-c", "protocol.file.allow=always", *arguments], check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """a.py is committed; built.py, out/ and what is in build/ are ignored."""
    root = tmp_path / "project"
    for folder in (root, root / "build", root / "out" / "inner", root / "src"):
        folder.mkdir(parents=True, exist_ok=True)
    (root / ".gitignore").write_text("built.py\nbuild/*\nout/\n")
    for name in ("a.py", "built.py", "build/b.py", "out/c.py", "out/inner/d.py", "src/e.py"):
        (root / name).write_text(f"name = {name!r}\n")
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "first")
    return root


def no_head(root: Path) -> None:
    (root / ".git" / "HEAD").unlink()


def no_objects(root: Path) -> None:
    (root / ".git" / "objects").rename(root / "objects")


def bad_config(root: Path) -> None:
    (root / ".git" / "config").write_text("[core\n")


def bad_index(root: Path) -> None:
    (root / ".git" / "index").write_bytes(b"nothing")


def worktree_of_another_machine(root: Path) -> None:
    (root / ".git").rename(root.parent / "gone")
    (root / ".git").write_text("gitdir: /not/here/.git/worktrees/project\n")


def dangling_link(root: Path) -> None:
    (root / ".git").rename(root.parent / "gone")
    (root / ".git").symlink_to("/not/here")


@pytest.mark.parametrize(
    "damage", [no_head, no_objects, bad_config, bad_index, worktree_of_another_machine, dangling_link]
)
@pytest.mark.parametrize("place", [".", "src"])
def test_a_damaged_checkout_is_an_error(checkout: Path, damage: Callable[[Path], None], place: str):
    damage(checkout)
    with pytest.raises(PreconditionError, match=r"git (cannot|could not|ls-files could not) read"):
        read(checkout / place)
    with pytest.raises(PreconditionError, match=r"git (cannot|could not|ls-files could not) read"):
        read(checkout.parent)


def test_a_copied_submodule_is_an_error(checkout: Path):
    outer = checkout.parent / "outer"
    outer.mkdir()
    git(outer, "init", "-q")
    git(outer, "submodule", "add", "-q", str(checkout), "inner")
    assert read(outer)[0] == [("inner", "a.py"), ("inner", "src/e.py")]
    copy = checkout.parent / "copy"
    (outer / "inner").rename(copy)
    with pytest.raises(PreconditionError, match=r"git cannot read .*not a git repository: .*Repair .*copy/\.git"):
        read(copy)


def test_a_damaged_checkout_in_a_good_one_is_an_error(checkout: Path):
    (checkout / "src" / ".git").mkdir()
    with pytest.raises(PreconditionError, match=r"its \.git is damaged"):
        read(checkout / "src")
    assert read(checkout)[0] == [("project", "a.py"), ("project", "src/e.py")]  # for git, it is a part of the good one


@pytest.mark.parametrize("option", ["--bare", "--mirror"])
def test_a_bare_repository_gives_its_history_and_no_hooks(checkout: Path, option: str):
    bare = checkout.parent / "mirrors" / "project.git"
    git(checkout, "clone", "-q", option, str(checkout), str(bare))
    (bare / "hooks" / "update.py").write_text("x = 1\n")
    for place in (bare, bare / "hooks", checkout / ".git", checkout / ".git" / "hooks"):
        with pytest.raises(PreconditionError, match=r"is a bare git repository.*--history"):
            read(place)
    assert read(bare, history_commits=5) == read(checkout, history_commits=5)
    assert read(bare, history_commits=5)[0] == [("project", "a.py"), ("project", "src/e.py")]
    assert read(bare.parent) == ([], {"bare git repository": 1})


def test_a_bare_repository_beside_its_worktrees(checkout: Path):
    root = checkout.parent / "worktrees"
    git(checkout, "clone", "-q", "--bare", str(checkout), str(root / ".bare"))
    (root / ".git").write_text("gitdir: ./.bare\n")
    git(root, "worktree", "add", "-q", "main", "HEAD")
    with pytest.raises(PreconditionError, match="is a bare git repository"):
        read(root)
    assert read(root / "main")[0] == [("main", "a.py"), ("main", "src/e.py")]
    assert read(root, history_commits=5)[0] == [("worktrees", "a.py"), ("worktrees", "src/e.py")]


def test_an_empty_bare_repository_has_a_reason(tmp_path: Path):
    git(tmp_path, "init", "-q", "--bare", "empty.git")
    assert read(tmp_path / "empty.git", history_commits=5)[1] == {"bare git repository without a commit at HEAD": 1}


def test_an_ignored_folder_that_is_named_is_read(checkout: Path):
    assert read(checkout / "out")[0] == [("out", "c.py"), ("out", "inner/d.py")]
    assert read(checkout / "out" / "inner")[0] == [("inner", "d.py")]
    assert read(checkout / "built.py")[0] == [("project", "built.py")]
    assert read(checkout) == ([("project", "a.py"), ("project", "src/e.py")], {"dotfile": 1})


def test_nothing_is_passed_over_without_a_reason(checkout: Path):
    ignored = "ignored by git (name the file itself to take it)"
    assert read(checkout / "build") == ([], {ignored: 1})
    (checkout / "src" / ".gitignore").write_text("*\n")  # as venv writes it
    git(checkout, "rm", "-q", "--cached", "src/e.py")
    assert read(checkout / "src") == ([], {ignored: 2})
    (checkout.parent / "nothing" / "inner").mkdir(parents=True)
    assert read(checkout.parent / "nothing") == ([], {"folder has no files": 1})
