"""Odd names and values end a command with one message and an exit code, never with a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LONG = "x" * 5000


def codelupe(home: Path, *arguments: str, **environment: str | bytes) -> subprocess.CompletedProcess[str]:
    script = "from service.cli.main import main; main()"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CODELUPE", "MODEL"))}
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        cwd=home,
        env=kept | {"CODELUPE_HOME": str(home), "METRICS_PORT": "0", "PYTHONPATH": str(ROOT)} | environment,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "message"),
    [
        (["status"], {"CODELUPE_HOME": "~nobody-has-this-name/x"}, 2, "no user has this name"),
        (["status"], {"SOURCE_TABLE": b"x\xff"}, 2, "SOURCE_TABLE: 'x\\udcff' is not allowed. Use UTF-8 text"),
        (["status", "--recipe", "nope"], {}, 2, "there is no recipe nope. Name a file, or one of embedded"),
        (["status", "--recipe", LONG], {}, 3, "File name too long"),
        (["samples", LONG], {}, 3, "File name too long"),
        (["up", "--once"], {"METRICS_HOST": "a..b"}, 3, "cannot listen on a..b"),
        (["plan"], {"MODEL": "a/b/c/d"}, 2, "a/b/c/d is neither a folder nor a Hub name"),
        (["plan"], {"MODEL": "~nobody-has-this-name/x"}, 2, "is not a usable name"),
        (["plan", "--vram-gib", "inf"], {}, 2, "--vram-gib"),
        (["drop", ".", "--score", "nan"], {}, 2, "--score"),
        (["drop", ".", "--score", "1e308"], {}, 2, "--score"),
        (["runs", "--limit", "99999999999999999999"], {}, 2, "--limit"),
        (["lineage", ""], {}, 2, "the path is empty"),
    ],
)
def test_odd_input_gets_a_message(tmp_path, arguments, environment, code, message):
    done = codelupe(tmp_path, *arguments, **environment)
    assert done.returncode == code, done.stderr
    assert message in " ".join(done.stderr.split()) and "Traceback" not in done.stderr


def test_an_env_file_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / ".env").write_bytes(b"# caf\xe9\n")
    done = codelupe(tmp_path, "status")
    assert done.returncode == 2 and ".env cannot be read" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(("content", "words"), [(b"\xff\xfe", "cannot be read"), (b"", "is empty")])
def test_a_damaged_instance_id_is_named(tmp_path, content, words):
    from service.errors import PreconditionError
    from service.settings.home import Home

    (tmp_path / "instance-id").write_bytes(content)
    with pytest.raises(PreconditionError, match=words):
        Home(tmp_path).instance()


def test_a_deeply_nested_recipe_is_refused(tmp_path):
    from trainer.recipe_file import RecipeError, load_recipe

    (tmp_path / "deep.yaml").write_text("[" * 100_000)
    with pytest.raises(RecipeError, match="recursion"):
        load_recipe(tmp_path / "deep.yaml")
