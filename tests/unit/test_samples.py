"""The builder `instruction`: text in, text out."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_folder import make_row, program
from source_rows import source_rows

from service.intake.languages import EXTENSIONS, FILENAMES, INTERPRETERS
from trainer.errors import UnusableInput
from trainer.recipe import Data
from trainer.records import Row
from trainer.samples.build import BUILDERS, builder_of, check_builders, halves
from trainer.samples.instruction import INSTRUCTIONS, SYSTEM, build_instruction
from trainer.samples.sample import Chat, Rejected
from trainer.samples.spoken import spoken

DATA = Data()


def pair_of(row: Row, *, seed: int) -> Chat:
    (sample,) = build_instruction(row, DATA, seed=seed)
    return sample


def code_of(text: str, language: str = "python") -> str:
    """Return the text between the fences of a message."""
    match = re.search(rf"(`{{3,}}){language}\n(.*)\n\1$", text, re.DOTALL)
    assert match, text
    return match[2]


def parts(sample: Chat, language: str = "python") -> tuple[str, str]:
    _, user, assistant = sample.messages
    return code_of(user.text, language), code_of(assistant.text, language)


def test_the_pair_has_the_prompt_of_the_default_recipe():
    content = "\n".join(f"line {i}" for i in range(1, 21)) + "\n"
    sample = pair_of(make_row(7, content), seed=1)
    system, user, assistant = sample.messages
    assert (system.role, system.text, system.supervised) == ("system", SYSTEM, False)
    opening, _, _ = user.text.partition("\n\n```python\nline 1\n")
    assert opening in [instruction.format(language="Python") for instruction in INSTRUCTIONS]
    assert (user.role, user.supervised) == ("user", False)
    assert (assistant.role, assistant.supervised) == ("assistant", True)
    context, rest = parts(sample)
    assert context + "\n" + rest + "\n" == content


@pytest.mark.parametrize(
    ("tag", "name"),
    [
        ("python", "Python"), ("cpp", "C++"), ("c++", "C++"), ("javascript", "JavaScript"),
        ("TypeScript", "TypeScript"),
        ("tsx", "TypeScript"), ("csharp", "C#"), ("c-sharp", "C#"), ("objective-c", "Objective-C"),
        ("objc", "Objective-C"),
        ("Objective-C++", "Objective-C++"), ("f-sharp", "F#"), ("php", "PHP"), ("ocaml", "OCaml"), ("html", "HTML"),
        ("visual-basic", "Visual Basic"), ("common-lisp", "Common Lisp"), ("c", "C"), ("r", "R"), ("text", "text"),
        ("gleam", "Gleam"), ("literate-haskell", "Literate Haskell"), ("MoonScript", "MoonScript"),
        ("x10", "x10"), ("", ""),
    ],
)  # fmt: skip
def test_prose_has_the_language_as_people_write_it_and_the_fence_its_tag(tag: str, name: str):
    row = replace(make_row(7, "\n".join(f"line {i}" for i in range(20))), language=tag)
    _, user, assistant = pair_of(row, seed=1).messages
    opening, _, code = user.text.partition("\n\n")
    assert opening in [instruction.format(language=name) for instruction in INSTRUCTIONS]
    assert code.startswith(f"```{tag.lower()}\n") and assistant.text.startswith(f"```{tag.lower()}\n")


def test_every_language_that_drop_detects_has_a_name_for_prose():
    detected = {name for names in EXTENSIONS.values() for name in names}
    detected |= {*FILENAMES.values(), *INTERPRETERS.values()}
    in_small = {spoken(name) for name in detected if name and spoken(name).isalpha() and spoken(name).islower()}
    assert in_small <= {"shell", "batch", "assembly", "sed", "fish", "text", "diff", "jq"}
    special = {"smt": "SMT-LIB", "tla": "TLA+", "m4": "M4", "sml": "Standard ML"}
    assert special.keys() <= detected and all(spoken(name) == said for name, said in special.items())


def test_the_prompt_shows_between_30_and_40_percent_of_the_lines():
    content = "\n".join(map(str, range(1000)))
    shown = {len(parts(pair_of(make_row(i, content), seed=3))[0].split("\n")) for i in range(200)}
    assert min(shown) >= 300 and max(shown) <= 400
    assert len(shown) > 50 and max(shown) - min(shown) > 80


def test_at_least_five_lines_are_shown():
    context, rest = parts(pair_of(make_row(1, "a\nb\nc\nd\ne\nf\n"), seed=1))
    assert (context, rest) == ("a\nb\nc\nd\ne", "f")


def test_every_instruction_is_used_and_the_seed_decides():
    rows = [make_row(i, program(i)) for i in range(100)]
    first = [pair_of(row, seed=1) for row in rows]
    assert {sample.messages[1].text.partition("\n")[0] for sample in first} == {
        instruction.format(language="Python") for instruction in INSTRUCTIONS
    }
    assert first == [pair_of(row, seed=1) for row in rows]
    assert first != [pair_of(row, seed=2) for row in rows]


@pytest.mark.parametrize("ticks", [3, 4, 7])
def test_a_fence_is_longer_than_any_in_the_content(ticks):
    content = program(1).replace("total", f"{'`' * ticks}total", 3)
    sample = pair_of(make_row(1, content), seed=1)
    assert f"\n{'`' * (ticks + 1)}python\n" in sample.messages[1].text
    assert "".join(f"{part}\n" for part in parts(sample)) == content


@given(st.text(alphabet=st.sampled_from("ab \t\r\n\x0b\x0c\x1c\u0085\u2028`"), min_size=1, max_size=200))
def test_no_character_is_lost_whatever_separates_lines(content):
    try:
        sample = pair_of(make_row(1, content), seed=5)
    except Rejected as rejected:
        assert rejected.reason in ("empty", "too_few_lines")
        return
    assert "\n".join(parts(sample)) == content.removesuffix("\n")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "empty"),
        (" \n\n\t", "empty"),
        ("a\nb\nc\nd\ne\n", "too_few_lines"),
        ("a\nb\nc\nd\ne\n \n", "too_few_lines"),
    ],
)
def test_a_row_without_a_sample_says_why(content, reason):
    with pytest.raises(Rejected) as rejected:
        pair_of(make_row(1, content), seed=1)
    assert rejected.value.reason == reason


@given(st.text(alphabet="ab\n", min_size=1, max_size=60))
def test_halves_are_the_whole_text_cut_after_a_newline(content):
    cut = halves(make_row(1, content))
    if cut is None:
        assert "\n" not in content[:-1]
    else:
        first, second = (part.content for part in cut)
        assert first + second == content and first.endswith("\n") and second


def test_a_builder_is_chosen_by_name():
    check_builders(DATA)
    assert builder_of(make_row(1, program(1)), DATA, seed=1) is BUILDERS["instruction"]
    with pytest.raises(UnusableInput, match=r"nonsense is not one of .*instruction"):
        check_builders(Data(builders={"nonsense": 1.0}))


@pytest.mark.parametrize("row", source_rows(), ids=lambda row: row.path)
def test_the_answer_begins_with_a_statement_where_one_begins_in_the_range(row):
    row = replace(row, content=row.content * (1 if row.language == "java" else 3))
    lines = row.content.removesuffix("\n").split("\n")
    data = Data(context_fraction_low=0.2, context_fraction_high=0.6)
    cuts = set()
    for file_id in range(40):
        (sample,) = build_instruction(replace(row, file_id=file_id), data, seed=1)
        shown, answer = (message.text.split("\n")[1:-1] for message in sample.messages[1:])
        shown = shown[2:]
        assert shown + answer == lines
        assert 0.2 * len(lines) <= len(shown) <= 0.6 * len(lines)
        assert answer[0].strip() and not answer[0].strip().startswith(("}", ")", "]", "else", "* ", "+", "."))
        above = shown[-1].strip()
        assert not above.startswith(("///", "#[", "@", "/**", "* ")) and not above.endswith((",", "(", "="))
        cuts.add(len(shown))
    assert len(cuts) > 2


def test_the_cut_moves_no_further_than_to_the_nearest_statement():
    content = "".join(
        f"def f{i}(x):\n    y = (\n        x\n        + {i}\n    )\n    return y\n\n\n" for i in range(30)
    )
    plain = replace(make_row(1, content), language="prose")
    for file_id in range(30):
        drawn = len(parts(pair_of(replace(plain, file_id=file_id), seed=1), "prose")[0].split("\n"))
        moved = len(parts(pair_of(make_row(file_id, content), seed=1))[0].split("\n"))
        assert abs(drawn - moved) <= 2
        assert content.split("\n")[moved].startswith(("def ", "    y = (", "    return"))


def test_a_comment_above_a_definition_goes_with_it():
    head = ["x = [", *["    1,"] * 8, "]"]
    lines = [*head, "# What f does,", "# at length,", "# and why.", "def f(x):", *["    x += 1"] * 16]
    for file_id in range(20):
        shown, answer = parts(pair_of(make_row(file_id, "\n".join(lines)), seed=1))
        assert shown.split("\n") == head and answer.startswith("# What f does,")


def test_samples_are_made_without_torch():
    loaded = "import sys, trainer.samples.build, trainer.run_dir, trainer.recipe; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
