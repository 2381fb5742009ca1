"""`codelupe report`: every kind of run, with texts that would do harm if a page or a Markdown viewer obeyed them."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from stage import Stage

from service.cli import report as command
from service.errors import PreconditionError, UsageError
from service.report.content import document
from service.report.gather import gather
from service.report.html_page import html
from service.report.markdown_page import markdown
from trainer.records import RowOutcome, SampleEvaluation, write_evaluation, write_outcomes
from trainer.run_dir import write_json

HOSTILE = (
    "</td></pre><script>alert(1)</script><img src=http://evil.test/x onerror=alert(2)>|`a` ![x](http://evil.test/y)\n"
    "~~~\n```\n# heading\n\x1b[2J\u202e<style>@import 'http://evil.test'</style> \"' --> ]]> \udc80"
)
MODELS = ("anchor", "current", "candidate")
QUIET = {
    "xmlns", "http-equiv", "name", "content", "lang", "charset", "class", "id", "style", "d", "x", "y", "width",
    "height", "type", "viewbox", "version", "transform", "clip-path", "xlink:href",
}  # fmt: skip
TAGS = {
    "html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "div", "ul", "li", "table", "caption",
    "tr", "th", "td", "pre", "code", "svg", "g", "path", "defs", "use", "text", "clippath", "rect",
}  # fmt: skip


class Inert(HTMLParser):
    """Fails for whatever could run or load something."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS, tag
        for name, value in attrs:
            assert name in QUIET, (tag, name)
            if name == "xlink:href":
                assert (value or "").startswith("#"), value
            assert "http:" not in (value or "") and "https:" not in (value or "") and "url(h" not in (value or "")

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def ask(stage: Stage, database_url: str) -> Callable[..., Any]:
    def gathered(run: Any, **options: Any) -> Any:
        return gather(replace(stage.settings, database_url=database_url), str(run), **options)

    return gathered


def fill(stage: Stage, run_id: int, *, packed: bool = False) -> Path:
    """Write the files of a run directory, with hostile texts wherever a text can be."""
    directory = stage.home.run(run_id)
    stage.events(run_id, 40, experts=True)
    write_json(
        directory.manifest, {"run_id": run_id, "stream": HOSTILE.replace("\udc80", ""), "files": {}, "trunk": [1]}
    )
    write_json(directory.answers, {"prompts": [{"prompt": clean(HOSTILE), "candidate": clean(HOSTILE), "base": "b"}]})
    write_json(directory.dataset_stats, {
        "rows": {"samples": {"instruction": {"samples": 3, "tokens": 900, "supervised_tokens": 500}},
                 "rejected": {clean(HOSTILE): 2}}})  # fmt: skip
    write_evaluation(directory.evaluation, [
        SampleEvaluation(
            file_ids=(n,), fresh=True, repository=HOSTILE, path=HOSTILE, language="python", kind="instruction",
            tokens=10, loss=dict.fromkeys(MODELS, 10.0 + n), correct=dict.fromkeys(MODELS, 5),
        ) for n in (1, 2)
    ])  # fmt: skip
    rows = "".join(
        json.dumps({"file_id": n, "repository": HOSTILE, "path": HOSTILE, "language": HOSTILE,
                    "content": f"secret {HOSTILE}", "sha256": "0", "license": HOSTILE}) + "\n" for n in (1, 2)
    )  # fmt: skip
    for path in (directory.rows, directory.held_out):
        if packed:
            with gzip.open(path.with_name(f"{path.name}.gz"), "wt", encoding="utf-8") as file:
                file.write(rows)
        else:
            path.write_text(rows, encoding="utf-8")
    write_outcomes(
        directory.rows_outcome, [RowOutcome(file_id=n, outcome="trained", samples=1, tokens=7) for n in (1, 2)]
    )
    return directory.root


def clean(text: str) -> str:
    return text.replace("\udc80", "")


def test_hostile_texts_are_inert_in_html(stage: Stage, ask: Callable[..., Any]) -> None:
    run_id = stage.run("refused", losses=(2.0, 1.5, 1.7), reason=clean(HOSTILE), rules={"gain": clean(HOSTILE)})
    fill(stage, run_id)
    page = html(document(ask(run_id, texts=5)))
    read = Inert(page)
    assert read.text.count("<script>alert(1)</script>") >= 6  # shown, in reason, rule, prompt, answer, path and text
    assert r"\x1b[2J\u202e" in read.text and "\x1b" not in page and "\u202e" not in page
    assert "default-src 'none'" in page and page.encode("utf-8")
    assert page.count("<svg") == 3 and "current adapter" in read.text


def test_hostile_texts_are_inert_in_markdown(stage: Stage, ask: Callable[..., Any]) -> None:
    run_id = stage.run("refused", losses=(2.0, 1.5, 1.7), reason=clean(HOSTILE), rules={"gain": clean(HOSTILE)})
    fill(stage, run_id)
    page = markdown(document(ask(run_id, texts=5)))
    assert "\x1b" not in page and "\u202e" not in page
    outside = without_fences(page)
    text = "\n".join(outside)
    assert "secret" not in text and not re.search(r"(?<!\\)\]\(|<(?!!-- codelupe report -->)", text)
    assert not [line for line in outside if line.startswith("#") and not re.match(r"##? [A-Z]", line)]
    cells = [len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else 0 for line in outside]
    assert all(before == after for before, after in pairwise(cells) if before and after)  # as many as the head has


def without_fences(page: str) -> list[str]:
    """Return the lines outside of fenced blocks, as CommonMark finds them."""
    outside, fence = [], ""
    for line in page.splitlines():
        if fence:
            fence = "" if line.strip("`") == "" and len(line) >= len(fence) else fence
        elif opening := re.match(r"`{3,}", line):
            fence = opening.group()
        else:
            outside.append(line)
    assert not fence
    return outside


def test_texts_of_rows_are_only_included_if_asked_for(stage: Stage, ask: Callable[..., Any]) -> None:
    run_id = stage.run("published", losses=(2.0, 2.0, 1.5))
    fill(stage, run_id, packed=True)
    for page in (html, markdown):
        assert "secret" not in page(document(ask(run_id))) and "secret" in page(document(ask(run_id, texts=1)))


def test_every_kind_of_run_has_a_report(stage: Stage, ask: Callable[..., Any]) -> None:
    live, failed = stage.run("training"), stage.run("failed", reason="out of memory")
    gone = stage.run("published", losses=(2.0, 2.0, 1.5), experts={
        "step": 9, "steps": 9, "tokens": 900, "aux_loss": 2.1, "top_k": 2,
        "layers": [{"shares": [1.5, 0.5], "entropy": 0.8, "dead": [1]}]})  # fmt: skip
    stage.events(live, 12, total=60)
    stage.files(gone, ("trained", "trained", None), ("held_out", "held_out", None))
    found = document(ask(live))
    assert {"Facts", "Curves"} == {
        block.text for block in found.blocks if hasattr(block, "text") and not hasattr(block, "about")
    }
    assert "out of memory" in Inert(html(document(ask(failed)))).text
    found = document(ask(gone))
    text = Inert(html(found)).text
    assert "is gone" in " ".join(found.missing) and "1 train (trained)" in text
    assert "150.0%" in text and "The gate's rules" in text and "1.5000" in text
    with pytest.raises(UsageError, match="no run 99"):
        ask(99)


def test_a_directory_without_its_database_and_a_damaged_one_say_what_is_missing(
    stage: Stage, ask: Callable[..., Any], tmp_path: Path
) -> None:
    root = fill(stage, 7)
    elsewhere = root.rename(tmp_path / "copied")
    write_json(elsewhere / "verdict.json", {"decision": "refuse", "reasons": ["too little"]})
    report = {
        "energy_joules": 7.2e6,
        "energy_source": "counter",
        "stream": "s",
        "recipe": "r",
        "evaluation": {name: {"loss": 1.5} for name in MODELS},
    }
    write_json(elsewhere / "report.json", report)
    known = ask(elsewhere)
    assert known.run is None and known.run_id == 7
    text = Inert(html(document(known))).text
    assert "1.5000" in text and "too little" in text and "2.000 kWh" in text
    (elsewhere / "report.json").write_text('{"evaluation": 5, "steps": []')
    (elsewhere / "dataset_stats.json").write_text('{"rows": 7}')
    (elsewhere / "answers.json").write_text('{"prompts": [{}]}')
    said = " ".join(document(ask(elsewhere)).missing)
    assert "report.json cannot be read" in said and "answers: the record has another form" in said
    with pytest.raises(UsageError, match="neither a run directory"):
        ask(tmp_path)


def test_the_command_never_replaces_another_file(
    stage: Stage, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = stage.run("failed", reason="out of memory")
    monkeypatch.setattr(command, "settings_for", lambda _: replace(stage.settings, database_url=database_url))
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # a report may be written again
        command.report(str(run_id))
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "report-000001.html",
        "report-000001.md",
    ]
    assert "not shown: curves" in capsys.readouterr().out
    other = tmp_path / "notes.md"
    other.write_text("mine")
    with pytest.raises(UsageError, match="not a report"):
        command.report(str(run_id), to=other)
    assert other.read_text() == "mine"
    command.report(str(run_id), to=other, force=True, as_json=True)
    assert "codelupe report" in other.read_text()
    command.report(str(run_id), to=tmp_path / "one.txt", format="html")
    for wrong, options, error in (
        (UsageError, {"to": tmp_path / "one.pdf"}, "must end in"), (UsageError, {"to": tmp_path}, "is a folder"),
        (UsageError, {"format": "pdf"}, "not one of"),
        (PreconditionError, {"to": tmp_path / "a" / "b.md"}, "does not exist"),
    ):  # fmt: skip
        with pytest.raises(wrong, match=error):
            command.report(str(run_id), **options)
