"""Texts that nobody checked never reach the terminal as control codes."""

from __future__ import annotations

import pytest

from service import logs
from service.cli.console import out, print_table
from service.cli.main import main
from service.errors import UsageError
from service.visible import on_one_line, visible

HOSTILE = "\x1b]0;title\x07 \x1b[2J \x9b31m \u202egnp.exe \r\b\x00 \u2028\udc80"


def is_harmless(text: str) -> bool:
    return all(letter.isprintable() or letter in "\n\t" for letter in text)


def test_control_characters_are_written_out_and_other_texts_stay() -> None:
    assert is_harmless(visible(HOSTILE))
    assert r"\x1b]0;title\x07" in visible(HOSTILE) and r"\u202e" in visible(HOSTILE)
    assert visible("naïve\tText\n日本 👍\xa0x") == "naïve\tText\n日本 👍\xa0x"
    assert on_one_line("a\n b\x1b") == r"a b\x1b"


def test_a_table_and_a_line_show_them(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(HOSTILE, ["reason", HOSTILE], [[HOSTILE, "[bold]not markup[/bold]"]])
    out.print(f"reason: {HOSTILE}")
    out.print(HOSTILE, markup=False)
    shown = capsys.readouterr().out
    assert is_harmless(shown) and shown.count(r"\x1b[2J") >= 3 and "[bold]not markup[/bold]" in shown


def test_an_error_a_log_line_and_a_stage_show_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise UsageError(HOSTILE)

    monkeypatch.setattr("service.cli.main.app", fail)
    with pytest.raises(SystemExit):
        main()
    logs.set_up("text")
    logs.event("Run failed", reason=HOSTILE)
    logs.progress_printer("text")("stage", HOSTILE)
    shown = capsys.readouterr()
    assert is_harmless(shown.err) and is_harmless(shown.out), shown
    assert r"\x1b[2J" in shown.out and shown.err.count(r"\u202e") == 2
