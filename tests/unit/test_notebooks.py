"""The code of notebooks, of both versions of the format and of several kernels."""

from __future__ import annotations

import json
from typing import Any

import pytest

from service.intake.notebooks import BadNotebook, source_of
from service.intake.source_texts import source_text


def notebook(*cells: tuple[str, str], language: str | None = "python", **metadata: Any) -> str:
    made = [
        {"cell_type": kind, "source": text.splitlines(keepends=True), "metadata": {}}
        | ({"outputs": [{"data": {"image/png": "iVBORw0KGgo="}}]} if kind == "code" else {})
        for kind, text in cells
    ]
    kernel = {} if language is None else {"kernelspec": {"name": "k", "language": language}}
    return json.dumps({"cells": made, "metadata": kernel | metadata, "nbformat": 4})


def test_markdown_is_a_comment_and_outputs_and_raw_cells_are_dropped():
    text = notebook(
        ("markdown", "# Title\n\n![plot](data:image/png;base64,iVBORw0KGgo=)"),
        ("code", "x = 1\n"),
        ("raw", "\\raw"),
        ("code", ""),
    )
    assert source_of(text) == ("python", "# # Title\n#\n# ![plot]()\n\nx = 1\n")


def test_magics_of_python():
    code = "%matplotlib inline\n!pip install a \\\n    b\n?help\nlen??\n"
    code += "files = !ls\nx = %time 1\nif x:\n    %pip list\ny = 2\n"
    text = notebook(
        ("code", code), ("code", "%%bash\nls -l\n"), ("code", "%%time\nz = 3\n"), ("code", "%%writefile a.py\na\n")
    )
    assert source_of(text) == ("python", "if x:\n    pass\ny = 2\n\nz = 3\n")


def test_what_looks_like_a_magic_within_python_stays():
    code = 'text = """\n%d items\n!important\n"""\nrest = (10\n    %text)\n'
    assert source_of(notebook(("code", code)))[1] == code


@pytest.mark.parametrize(
    ("language", "code", "spoken", "source"),
    [
        ("R", "x %>%\n%in% y\n!a\n", "r", "x %>%\n%in% y\n!a\n"),
        ("julia", "]add Plots\n;ls\n?sin\nx = [1,\n]\n", "julia", "x = [1,\n]\n"),
        ("C++17", "!ls\nint x;\n", "cpp", "int x;\n"),
        ("C#", '#r "nuget: A"\n#!time\nvar x = 1;\n', "csharp", "var x = 1;\n"),
        ("rust", ':dep rand = "0.8"\nlet x = 1;\n', "rust", "let x = 1;\n"),
        ("bash", "! grep x y\n", "bash", "! grep x y\n"),
    ],
)
def test_other_kernels(language: str, code: str, spoken: str, source: str):
    text = notebook(("markdown", "hi"), ("code", code), language=language)
    comment = {"r": "#", "julia": "#", "bash": "#"}.get(spoken, "//")
    assert source_of(text) == (spoken, f"{comment} hi\n\n{source}")


def test_format_3_has_worksheets():
    cells = [
        {"cell_type": "heading", "level": 2, "source": "Part"},
        {"cell_type": "code", "language": "python", "input": ["x = 1\n", "y = 2"], "outputs": []},
    ]
    text = json.dumps({"nbformat": 3, "metadata": {"name": ""}, "worksheets": [{"cells": cells}]})
    assert source_of(text) == ("python", "# ## Part\n\nx = 1\ny = 2\n")


def test_the_kernel_is_named_in_one_of_several_places():
    assert source_of(notebook(("code", "x <- 1"), language=None, language_info={"name": "R"}))[0] == "r"
    assert source_of(notebook(("code", "x = 1"), language=None))[0] == "python"


@pytest.mark.parametrize("text", ["{}", "[]", "nothing", notebook(("markdown", "hi")), "[" * 100_000])
def test_a_file_without_code_says_so(text: str):
    with pytest.raises(BadNotebook, match=r"not a notebook|no code"):
        source_of(text)
    assert source_text("a.ipynb", text.encode()) in ("not a notebook", "notebook has no code")
