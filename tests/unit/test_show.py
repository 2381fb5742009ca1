"""`codelupe samples` shows exactly what is trained, without control characters for the terminal."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
from run_folder import RECIPES, encoder, make_row, make_run, program, short_recipe, short_rows, tokenizer
from source_rows import SOURCES, source_rows

from service.publish.folders import tidy_run
from trainer import __main__
from trainer.data.encoder import IGNORED
from trainer.data.show import segments
from trainer.data.tokenize import tokenize_rows
from trainer.recipe import Data
from trainer.recipe_file import dump_recipe
from trainer.records import json_line
from trainer.samples.build import BUILDERS


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(dump_recipe(short_recipe()))
    return path


def rows_file(folder, rows):
    path = folder / "rows.jsonl"
    path.write_text("".join(json_line(asdict(row)) for row in rows))
    return path


@pytest.mark.parametrize("builder", [name for name in BUILDERS if name not in ("commits", "chat")])
def test_segments_are_the_sample(builder):
    data = Data(builders={builder: 1.0}, max_length=512)
    samples = tokenize_rows(source_rows(), encoder(), data, seed=1).samples
    assert samples
    for sample in samples:
        parts = list(segments(sample, encoder()))
        ids = sample.ids.tolist()
        assert "".join(part.text for part in parts) == tokenizer().decode(ids)
        assert sum(part.control for part in parts) == sum(token in encoder().added for token in ids)
        learned = sample.labels[sample.labels != IGNORED].tolist()
        assert "".join(part.text for part in parts if part.learned) == tokenizer().decode(learned)


def test_marks_show_what_is_learned(tmp_path, recipe, capsys):
    row = make_row(1, "x = '\x1b[31m<|im_end|>'\n" + program(1))
    path = rows_file(tmp_path, [row, make_row(2, "\n", path="empty\x1b.py")])
    assert __main__.main(["samples", str(recipe), str(path), "--builder", "chunks"]) == 0
    said = capsys.readouterr().out
    assert "── 1 · chunks · file_1.py · " in said
    assert "x« = '\\x1b[31m<|im_end|>'\n" in said, "no escape reaches the terminal, and text is no control token"
    assert "return total\n»«⟦<|endoftext|>⟧»" in said
    assert "empty\\x1b.py: no sample (empty)" in said
    assert "1 samples of 2 rows (chunks 1)" in said and "\x1b" not in said


def test_colours_on_a_terminal(tmp_path, recipe, capsys, monkeypatch):
    path = rows_file(tmp_path, short_rows(2))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert __main__.main(["samples", str(recipe), str(path)]) == 0
    said = capsys.readouterr().out
    assert "\x1b[32mlearned\x1b[0m" in said and "\x1b[36m<|im_start|>\x1b[0m" in said
    assert "\x1b[1;32m<|im_end|>\x1b[0m" in said and "«" not in said
    assert "\x1b[32m    return total\x1b[0m\n" in said, "every line has its own colour"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert __main__.main(["samples", str(recipe), str(path), "--plain"]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_json(tmp_path, recipe, capsys):
    path = rows_file(tmp_path, [*short_rows(3), make_row(9, "\n")])
    assert __main__.main(["samples", str(recipe), str(path), "--json", "--limit", "2", "--seed", "5"]) == 0
    said = json.loads(capsys.readouterr().out)
    made = tokenize_rows(short_rows(3), encoder(), short_recipe().data, seed=5).samples
    assert [sample["tokens"] for sample in said["samples"]] == [sample.tokens for sample in made[:2]]
    assert said["samples_total"] == 3 and said["rejected"] == [{"path": "file_9.py", "reason": "empty"}]
    first = said["samples"][0]
    assert first["rows"] == [{"path": "file_1.py", "tokens": first["tokens"]}] and first["learned"] < first["tokens"]


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        (None, [], ["is not a rows file"]),
        ("", [], ["holds no rows"]),
        ("{", [], ["line 1: not JSON"]),
        ('{"a": 1}\n', [], ["a row has the wrong fields"]),
        (b"\xff\xfe", [], ["cannot be read"]),
        (json_line(asdict(make_row(1, "a\n"))), ["--builder", "magic"], ["magic is not one of", "chunks"]),
    ],
)
def test_what_cannot_be_shown_is_explained(tmp_path, recipe, capsys, content, options, words):
    path = tmp_path / "rows.jsonl"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert __main__.main(["samples", str(recipe), str(path), *options]) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in words) and "Traceback" not in said


def codelupe(home, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = "from service.cli.main import main; main()"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CODELUPE")}
    return subprocess.run(
        [sys.executable, "-c", script, "samples", *arguments],
        capture_output=True,
        text=True,
        env=environment | {"CODELUPE_HOME": str(home)},
        check=False,
    )


def test_the_command_on_files_and_on_a_run(tmp_path):
    embedded = str(RECIPES / "embedded.yaml")
    picture = tmp_path / "picture.py"
    picture.write_bytes(b"\xff\xd8")
    made = codelupe(tmp_path, str(SOURCES / "queue.go"), str(picture), "--recipe", embedded, "--builder", "items")
    assert made.returncode == 0, made.stderr
    assert "· items" not in made.stdout and re.search(r"· method · queue\.go · \d+ tokens", made.stdout)
    assert f"skipped: {picture}: not UTF-8" in made.stderr

    rows = [replace(row, file_id=number) for number, row in enumerate(short_rows(2), 5)]
    run = make_run(tmp_path / "runs" / "000007", short_recipe(data__builders={"fim": 1.0}), rows, short_rows(2), seed=3)
    for arguments, settled in (([str(run.root)], False), ([], True)):
        if settled:
            tidy_run(run)  # as after a verdict
        done = codelupe(tmp_path, "--json", *arguments)
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        assert said["samples_total"] == 2 and said["samples"][0]["kind"].startswith("fim_"), "by the run's own recipe"
        expected = tokenize_rows(rows, encoder(), Data(builders={"fim": 1.0}, max_length=384), seed=3).samples
        assert [sample["tokens"] for sample in said["samples"]] == [sample.tokens for sample in expected]

    packed = run.root / "rows.jsonl.gz"
    packed.write_bytes(packed.read_bytes()[:-9])
    done = codelupe(tmp_path)
    assert done.returncode == 3 and f"the rows of {run.root} cannot be read" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["no/such/file.py"], "no such file or folder: no/such/file.py"),
        ([str(SOURCES.parent / "nothing.bin")], "no such file"),
        ([], "there is no run below"),
    ],
)
def test_the_command_says_what_it_cannot_show(tmp_path, arguments, word):
    done = codelupe(tmp_path, *arguments)
    assert done.returncode == 2 and word in done.stderr and "Traceback" not in done.stderr


def test_only_files_that_drop_skips_are_an_error(tmp_path):
    path = tmp_path / "image.xyz"
    path.write_bytes(b"\0")
    done = codelupe(tmp_path, str(path))
    assert done.returncode == 2 and f"nothing to show: {path}: not a known language" in done.stderr
