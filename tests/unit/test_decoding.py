"""Files that are not UTF-8: by their byte order mark, or by what they declare."""

from __future__ import annotations

import codecs

import pytest

from service.intake.decoding import decoded


@pytest.mark.parametrize(
    "encoding", ["utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"]
)
def test_a_mark_says_how_and_is_removed(encoding: str):
    marks = {"utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE,
             "utf-32-le": codecs.BOM_UTF32_LE, "utf-32-be": codecs.BOM_UTF32_BE}  # fmt: skip
    data = marks.get(encoding, b"") + "x = 'ä€'\r\ny = 1\rz = 2\n".encode(encoding)
    assert decoded(data) == "x = 'ä€'\ny = 1\nz = 2\n"


@pytest.mark.parametrize(
    ("text", "encoding", "now"),
    [
        ("# -*- coding: latin-1 -*-\nx = 'ü'\n", "latin-1", "# -*- coding: utf-8 -*-\nx = 'ü'\n"),
        (
            "#!/usr/bin/ruby\r\n# encoding: iso-8859-15\r\n'€'\r\n",
            "iso-8859-15",
            "#!/usr/bin/ruby\n# encoding: utf-8\n'€'\n",
        ),
        ("# vim: set fileencoding=cp1252 :\n'€'\n", "cp1252", "# vim: set fileencoding=utf-8 :\n'€'\n"),
        (
            ";; -*- mode: lisp; coding: iso-latin-1-unix -*-\né\n",
            "latin-1",
            ";; -*- mode: lisp; coding: utf-8 -*-\né\n",
        ),
        ("// -*- coding: euc-jp -*-\nあ\n", "euc-jp", "// -*- coding: utf-8 -*-\nあ\n"),
        (
            '<?xml version="1.0" encoding="ISO-8859-2"?><a>ą</a>',
            "iso-8859-2",
            '<?xml version="1.0" encoding="utf-8"?><a>ą</a>',
        ),
        ("<?xml version='1.0' encoding='UTF-16'?><a>ä</a>", "utf-16", "<?xml version='1.0' encoding='utf-8'?><a>ä</a>"),
        ("<html><meta charset=windows-1251>Привет", "cp1251", "<html><meta charset=utf-8>Привет"),
        (
            '<META http-equiv="Content-Type" content="text/html; charset=Shift_JIS">テ',
            "shift_jis",
            '<META http-equiv="Content-Type" content="text/html; charset=utf-8">テ',
        ),
        ('@charset "iso-8859-1";\na { content: "é" }', "latin-1", '@charset "utf-8";\na { content: "é" }'),
        ("# coding: iso-2022-jp\nx = 'あ'\n", "iso-2022-jp", "# coding: utf-8\nx = 'あ'\n"),
        (
            "\\documentclass{a}\n\\usepackage[latin1]{inputenc}\né",
            "latin-1",
            "\\documentclass{a}\n\\usepackage[utf8]{inputenc}\né",
        ),
        ("use encoding 'latin1';\n'é';\n", "latin-1", "use encoding 'utf-8';\n'é';\n"),
    ],
)
def test_a_declaration_says_how_and_is_true_afterwards(text: str, encoding: str, now: str):
    assert decoded(text.encode(encoding)) == now


def test_latin_1_with_curly_quotes_is_windows_1252():
    assert decoded(b"# coding: latin-1\nx = '\x93'\n") == "# coding: utf-8\nx = '\u201c'\n"


def test_utf_8_stays_what_it_is():
    text = "# -*- coding: latin-1 -*-\nx = 'ü'\n"
    assert decoded(text.encode()) == text


@pytest.mark.parametrize(
    "name", ["rot13", "zip", "base64", "unicode_escape", "utf-7", "utf-16", "punycode", "unheard-of", "utf-8"]
)
def test_a_name_that_is_no_charset_does_not_count(name: str):
    with pytest.raises(UnicodeDecodeError):
        decoded(f"# coding: {name}\n".encode() + b"x = '\xe9'\n")


@pytest.mark.parametrize(
    "data", [b"x = '\xe9'\n", b"x = 1\ny = 2\n# coding: latin-1\n\xe9", b"\xff\xfea", b"coding: latin-1\n\xe9"]
)
def test_without_a_true_mark_or_declaration_it_is_no_text(data: bytes):
    with pytest.raises(UnicodeDecodeError):
        decoded(data)
