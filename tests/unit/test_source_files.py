"""What is no source file of one's own: merge conflicts, pointers, other people's code. And plain line ends."""

from __future__ import annotations

import pytest

from service.admission.filters import refusal
from service.intake.quality import quality_score
from service.source_files import has_conflict, is_vendored, plain, plain_values, pointer
from trainer.recipe import Hygiene

CODE = "".join(f"def area_{n}(width, height):\n    return width * height + {n}\n\n" for n in range(12))
TWO_WAY = "<<<<<<< HEAD\nx = 1\n=======\nx = 2\n>>>>>>> feature\n"
DIFF3 = "<<<<<<< ours\nx = 1\n||||||| base\nx = 0\n=======\nx = 2\n>>>>>>> theirs\n"
ZDIFF3 = "a = 1\n<<<<<<< HEAD\n||||||| 3f2a1b4\nx = 0\n=======\nx = 2\n>>>>>>> 9c8d7e6 (second)\nb = 1\n"
SVN = "<<<<<<< .mine\nx = 1\n=======\nx = 2\n>>>>>>> .r42\n"
JUJUTSU = "<<<<<<< Conflict 1 of 1\n%%%%%%% Changes from base\n-x\n+y\n+++++++ Contents of side #2\nz\n>>>>>>> end\n"
LONGER = "<<<<<<<<< Temporary merge branch 1\nx = 1\n=========\nx = 2\n>>>>>>>>> Temporary merge branch 2\n"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "ab" * 32 + "\nsize 12345\n"


@pytest.mark.parametrize("conflict", [TWO_WAY, DIFF3, ZDIFF3, SVN, JUJUTSU, LONGER])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_a_merge_conflict_is_refused_and_scored_down(conflict: str, ends: str):
    text = (CODE + conflict + CODE).replace("\n", ends)
    assert has_conflict(text) and refusal(text, Hygiene(), min_lines=6) == "merge_conflict"
    assert quality_score(CODE) >= 70 > quality_score(text)


@pytest.mark.parametrize(
    "text",
    [
        "Title\n=======\n\ntext\n",
        "A line of <<<<<<< HEAD begins a conflict.\n=======\n>>>>>>> is its end.\n",
        "<<<<<<< HEAD\nonly the start\n=======\n",
        "=======\n>>>>>>> feature\n",
        ">>>>>>> b\n=======\n<<<<<<< a\n",
        "    <<<<<<< HEAD\n    =======\n    >>>>>>> quoted\n",
    ],
)
def test_text_about_conflicts_is_none(text: str):
    assert not has_conflict(text) and refusal(CODE + text, Hygiene(), min_lines=6) is None


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (LFS, "Git LFS pointer"),
        (LFS.replace("\n", "\r\n"), "Git LFS pointer"),
        (LFS.replace("git-lfs.github.com/spec/v1", "hawser.github.com/spec/v1"), "Git LFS pointer"),
        (LFS.replace("oid", "ext-0-foo sha256:" + "cd" * 32 + "\noid"), "Git LFS pointer"),
        ("/annex/objects/SHA256E-s31390--f50d7ac4.py\n", "git-annex pointer"),
        ("../.git/annex/objects/3f/Kw/SHA256E-s9--ab.py/SHA256E-s9--ab.py", "git-annex pointer"),
        ("# A pointer begins with version https://git-lfs.github.com/spec/v1\n", None),
        ("version https://git-lfs.github.com/spec/v1\nis the first line of a pointer\n", None),
        (CODE, None),
    ],
)
def test_a_pointer_is_no_text(text: str, what: str | None):
    assert pointer(text) == what
    assert (refusal(text, Hygiene(), min_lines=6) == "lfs_pointer") is (what is not None)


@pytest.mark.parametrize(
    ("path", "vendored"),
    [
        ("node_modules/left/m.js", True),
        ("web/node_modules/@scope/left/m.js", True),
        ("venv/lib/python3.11/site-packages/right/m.py", True),
        ("target/debug/m.rs", True),
        ("build/lib/m.py", True),
        ("dist/m.js", True),
        ("vendor/github.com/x/m.go", True),
        ("third_party/zlib/z.c", True),
        ("ios/Pods/AFNetworking/a.m", True),
        ("__pypackages__/3.11/lib/m.py", True),
        (".tox/py311/lib/m.py", True),
        ("cmake-build-debug/m.c", True),
        ("thing.egg-info/m.py", True),
        ("Vendor\\m.cs", True),
        ("src/build/m.py", False),
        ("src/main/java/org/target/M.java", False),
        ("tools/build.py", False),
        ("vendor.py", False),
        ("distance/m.py", False),
        ("src/node_modules/m.js", True),
    ],
)
def test_other_peoples_code_is_known_by_its_path(path: str, vendored: bool):
    assert is_vendored(path) is vendored


def test_line_ends_and_marks_become_plain():
    assert plain("\ufeffa\r\nb\rc\n\rd") == "a\nb\nc\n\nd"
    assert plain("a\ufeff\n") == "a\ufeff\n"
    turns = {"messages": [{"role": "user", "content": "\ufeffhi\r\n"}], "n": 1, "before": "x\ry", "none": None}
    plainer = {"messages": [{"role": "user", "content": "hi\n"}], "n": 1, "before": "x\ny", "none": None}
    assert plain_values(turns) == plainer
