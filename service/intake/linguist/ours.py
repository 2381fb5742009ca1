"""Patterns that are more certain than linguist's, or that cover more of a language. They are asked first."""

from __future__ import annotations

import re


def _flags(patterns: tuple[str, ...]) -> re.RegexFlag:
    return re.MULTILINE | (re.IGNORECASE if patterns[0].startswith("(?i)") else re.NOFLAG)


_LANGUAGES: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    ".pl": (
        (
            "perl",
            (r"^\s*use (?:strict|warnings|utf8|v?5)\b", r"^\s*my [$@%(]", r"^\s*sub \w+\s*\{", r"^\s*package [\w:]+;"),
        ),
        (
            "prolog",
            (
                r"^\s*:-\s*\w",
                r"^[a-z]\w*(?:\([^()\n]*\))?\s*(?::-|-->)",
                r"\A(?:\s|%.*\n)*[a-z]\w*\([^()\n]*\)\.\s*$",  # a fact first of all
            ),
        ),
    ),
    ".m": (
        ("objective-c", (r"^\s*@(?:interface|implementation|protocol|import|class)\b", r"^\s*#(?:import|include)\b")),
        (
            "matlab",
            (
                r"\A(?:\s|%.*\n)*(?:function|classdef|clear|clc|close all)\b",
                r"\A\s*%",
                r"^end(?:function)?\s*;?$",
                r"^\w+ = [\[(\w].*;$(?!.*\{)",
            ),
        ),
    ),
    ".h": (
        ("objective-c", (r"^\s*@(?:interface|protocol|class|import)\b", r"^\s*#import\b")),
        (
            "cpp",
            (r"^\s*(?:namespace\s+\w|template\s*<|class\s+\w+|using\s+\w|#include\s*<\w+>)", r"\bstd::"),
        ),
    ),
    ".cls": (
        ("tex", (r"^\s*\\(?:NeedsTeXFormat|ProvidesClass|LoadClass|RequirePackage|newcommand)\b",)),
        ("vba", (r"^VERSION \d\.\d CLASS", r"^Attribute VB_Name")),
        ("objectscript", (r"^Class\s+[\w%.]+",)),
        (
            "progress",
            (r"(?i)^\s*using\s+[\w.]+\.\s*$", r"(?i)^\s*class\s+[\w.]+.*:\s*$", r"(?i)^\s*define (?:public|private)\b"),
        ),
    ),
    ".inc": (
        ("php", (r"<\?(?:php|=)",)),
        (
            "assembly",
            (r"(?i)^\s*%(?:macro|define|include)\b", r"(?i)^\s*\w+\s+(?:equ|db|dw|dd|proc)\b", r"(?i)^\s*mov\s+\w+,"),
        ),
        ("bitbake", (r"^(?:inherit|require) \w", r"^(?:SRC_URI|DESCRIPTION|LICENSE|DEPENDS)\b.*=", r"^do_\w+\s*\(\)")),
        ("pascal", (r"(?i)^\s*\{\$\w+", r"(?i)^\s*(?:procedure|function)\s+\w+[^{\n]*;\s*$", r"(?i)^\s*unit\s+\w+;")),
        (
            "cpp",
            (
                r"^\s*#\s*(?:include|ifndef|define|pragma)\b",
                r"^\s*(?:template\s*<|static\s+\w+|namespace\b)",
                r"\bstd::",
            ),
        ),
        ("html", (r"(?i)^\s*<(?:div|p|ul|table|html|head|script|link|meta|nav|!--)\b",)),
        ("sql", (r"(?i)^\s*(?:select|insert into|create table|update)\b",)),
    ),
    ".v": (
        (
            "coq",
            (
                r"^\s*(?:Require (?:Import|Export)|From \w+ Require|Theorem|Lemma|Inductive|Definition|Fixpoint)\b",
                r"^Qed\.",
            ),
        ),
        ("verilog", (r"^\s*module\s+\w+\s*(?:#?\(|;)", r"^\s*endmodule\b", r"^\s*`(?:timescale|define|include)\b")),
        (
            "v",
            (
                r"^module \w+\s*$",
                r"^\s*(?:pub )?fn (?:\(\w+ .*\) )?\w+.*\{",
                r"^import [\w.]+$",
                r"^\s*(?:mut )?\w+ := ",
            ),
        ),
    ),
    ".fs": (
        ("glsl", (r"^\s*#version\b", r"^\s*(?:precision|uniform|varying)\s", r"^\s*(?:in|out)\s+vec[234]\b")),
        ("forth", (r"^: \S+\s", r"^\\ ")),
    ),
    ".sql": (
        ("plpgsql", (r"(?i)\blanguage\s+'?plpgsql\b",)),
        ("tsql", (r"(?i)^\s*GO\s*$", r"(?i)\bNVARCHAR\b", r"(?i)\bDECLARE\s+@\w", r"(?i)\[dbo\]\.")),
        ("plsql", (r"(?i)\bVARCHAR2\b", r"(?i)\bcreate\s+or\s+replace\s+package\b", r"(?i)\bDBMS_\w+\.")),
        ("sql", (r"(?i)^\s*(?:select|insert|update|delete|create|alter|drop|with)\b",)),
    ),
    ".r": (("r", (r"<-", r"\bfunction\s*\(", r"^\s*library\(", r"\A#")),),
}
OURS: dict[str, tuple[tuple[str, re.Pattern[str]], ...]] = {
    extension: tuple(
        (name, re.compile("|".join(pattern.replace("(?i)", "") for pattern in patterns), _flags(patterns)))
        for name, patterns in languages
    )
    for extension, languages in _LANGUAGES.items()
}
"""By extension, in order: a language, and what only occurs in it."""
