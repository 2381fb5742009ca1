"""Decodes the bytes of a file: by its byte order mark, as UTF-8, or by the encoding that the text declares."""

from __future__ import annotations

import codecs
import re

from service.source_files import plain

MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Encodings by byte order mark. That of UTF-32 begins like that of UTF-16."""
DECLARED_WITHIN = 1024
"""A declaration is at the start. HTML allows it within this many bytes."""
NAME = r"[A-Za-z][\w.:-]*"
DECLARATIONS = (
    re.compile(rf"\A\s*<\?xml\b[^>]*?\bencoding\s*=\s*[\"']({NAME})[\"']"),
    re.compile(rf"<meta\b[^>]*?\bcharset\s*=\s*[\"']?\s*({NAME})", re.IGNORECASE),
    re.compile(rf"\A@charset\s+[\"']({NAME})[\"']\s*;"),
    re.compile(rf"\A(?:.*\n)?[ \t\f]*(?:#|//|/\*|;|%|--|<!--|\(\*|\"|'|<%|{{-).*?coding[:=][ \t]*[\"']?({NAME})"),
    re.compile(rf"^\s*\\usepackage\s*\[({NAME})\]\s*\{{inputenc\}}", re.MULTILINE),
    re.compile(rf"^\s*use encoding\s*\(?[\"']?:?({NAME})|^=encoding\s+({NAME})", re.MULTILINE),
)
"""XML, HTML, CSS, the first two lines of Python, Ruby, Emacs and Vim (PEP 263), LaTeX and Perl."""
LINE_ENDS = re.compile(r"-(?:unix|dos|mac)\Z")
ALIASES = {
    "iso-latin-1": "latin-1", "latin1": "latin-1", "ansinew": "cp1252", "applemac": "mac-roman", "x-sjis":
    "shift_jis", "windows-31j": "cp932", "x-gbk": "gbk", "x-euc-jp": "euc_jp", "x-mac-roman": "mac-roman",
    "cp-1252": "cp1252", "x-cp1252": "cp1252", "x-cp1251": "cp1251", "ks_c_5601-1987": "euc_kr", "latin9":
    "iso8859-15", "japanese-shift-jis": "shift_jis",
}  # fmt: skip
"""Names of encodings that Python does not know."""
NO_CHARSETS = frozenset({
    "unicode_escape", "raw_unicode_escape", "idna", "punycode", "undefined", "utf_7", "mbcs", "oem", "palmos",
})  # fmt: skip
"""What Python can decode, but no file is in."""
SEVEN_BITS = ("iso2022", "hz")
"""Encodings whose bytes are ASCII, with escapes."""
CONTROLS = re.compile("[\x80-\x9f]")


def decoded(data: bytes) -> str:
    """Return the text of a file, with `\\n` at its line ends and without a byte order mark.

    A declaration of another encoding is changed to UTF-8, because that is what the text is stored and trained as.

    Raises:
        UnicodeDecodeError: the bytes are in no encoding that the file says.
    """
    marked = next((encoding for mark, encoding in MARKS if data.startswith(mark)), None)
    if marked is not None:
        text = data.decode(marked)
        return plain(_truthful(text) if marked != "utf-8-sig" else text)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        text = data.decode("latin-1")
        if (codec := _declared(text)) is None:
            raise error
        return plain(_truthful(_by(codec, data)))
    if "\x1b" in text or "~{" in text:
        codec = _declared(text)
        if codec is not None and codec.name.startswith(SEVEN_BITS):
            return plain(_truthful(_by(codec, data)))
    return plain(text)


def _declared(text: str) -> codecs.CodecInfo | None:
    """Return the encoding that a text declares, or None if it declares none that can be used."""
    match = _declaration(text)
    if match is None:
        return None
    name = LINE_ENDS.sub("", match.group(match.lastindex or 1).lower())
    try:
        codec = codecs.lookup(ALIASES.get(name, name))
    except (LookupError, ValueError):
        return None
    wide = codec.name.startswith(("utf-16", "utf-32", "utf-8"))  # the declaration itself was read as single bytes
    usable = codec._is_text_encoding and codec.name.replace("-", "_") not in NO_CHARSETS and not wide
    return codec if usable else None


def _declaration(text: str) -> re.Match[str] | None:
    start = text[:DECLARED_WITHIN].replace("\r\n", "\n ").replace("\r", "\n")  # keeps positions
    found = (pattern.search(start) for pattern in DECLARATIONS)
    return next((match for match in found if match is not None), None)


def _by(codec: codecs.CodecInfo, data: bytes) -> str:
    text = codec.decode(data, "strict")[0]
    if codec.name == "iso8859-1" and CONTROLS.search(text):  # who says Latin-1 and uses these means Windows-1252
        try:
            return data.decode("cp1252")
        except UnicodeDecodeError:
            return text
    return text


def _truthful(text: str) -> str:
    """Return a text whose declaration says UTF-8."""
    match = _declaration(text)
    if match is None:
        return text
    start, end = match.span(match.lastindex or 1)
    now = "utf8" if "inputenc" in match.group() else "utf-8"
    return f"{text[:start]}{now}{text[end:]}"
