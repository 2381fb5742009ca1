"""Records: formats, names of columns, conversations, and values that are written in other ways."""

from __future__ import annotations

import bz2
import gzip
import json
from collections import Counter
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from db.files import NewFile
from service.intake.drop import RecordFiles, read_sources
from service.intake.formats import PassedOver
from service.intake.records import Given
from trainer.conversations import turns_of

CASES = Path(__file__).parents[3] / "shared" / "data" / "cases" / "records"
CODE = "def f():\n    return 1\n"


def read(*paths: Path, **given: Any) -> tuple[list[NewFile], Counter[str], RecordFiles]:
    records = RecordFiles()
    found = list(read_sources([str(path) for path in paths], Given(**given), records=records))
    files = [one for one in found if isinstance(one, NewFile)]
    return files, Counter(one.reason for one in found if isinstance(one, PassedOver)), records


def lines(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def only(path: Path, **given: Any) -> NewFile:
    files, skipped, _ = read(path, **given)
    assert len(files) == 1 and not skipped, skipped
    return files[0]


# --- formats ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2", ""])
@pytest.mark.parametrize("kind", [".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet"])
def test_every_format_gives_the_same_rows_compressed_or_not(tmp_path: Path, kind: str, suffix: str):
    records = [{"content": CODE + f"x = {n}\n", "path": f"{n}.py"} for n in range(3)]
    plain = tmp_path / f"rows{kind}"
    match kind:
        case ".parquet":
            parquet.write_table(pyarrow.Table.from_pylist(records), plain)
        case ".json":
            plain.write_text(json.dumps(records))
        case ".csv" | ".tsv":
            mark = "," if kind == ".csv" else "\t"
            cells = [f'"{r["content"]}"{mark}{r["path"]}\n' for r in records]
            plain.write_text(f"content{mark}path\n" + "".join(cells))
        case _:
            lines(plain, *records)
    packed = plain.with_name(plain.name + suffix)
    content = plain.read_bytes()
    if suffix and kind == ".parquet":
        return  # Parquet compresses its columns itself
    if suffix == ".zst":
        with pyarrow.CompressedOutputStream(str(packed), "zstd") as out:
            out.write(content)
    elif suffix:
        packed.write_bytes({".gz": gzip, ".bz2": bz2}[suffix].compress(content))  # type: ignore[attr-defined]
    files, skipped, _ = read(packed)
    assert [(file.content, file.path, file.language) for file in files] == [
        (record["content"], record["path"], "python") for record in records
    ]
    assert not skipped and files[0].repository == "rows"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("kind", [".jsonl", ".csv"])
def test_a_mark_says_how_a_file_is_encoded(tmp_path: Path, encoding: str, kind: str):
    text = json.dumps({"content": CODE + "# é"}) + "\n" if kind == ".jsonl" else f'content\n"{CODE}# é"\n'
    mark = "\ufeff" if encoding.endswith("-be") else ""
    (tmp_path / f"rows{kind}").write_bytes((mark + text).encode(encoding))
    assert only(tmp_path / f"rows{kind}").content == CODE + "# é"


def test_a_folder_of_shards_gives_their_rows_and_its_tables_are_left_alone(tmp_path: Path):
    (tmp_path / "data").mkdir()
    lines(tmp_path / "data" / "0.jsonl", {"content": CODE + "a"}, {"content": CODE + "b"})
    parquet.write_table(pyarrow.table({"content": [CODE + "c"]}), tmp_path / "data" / "1.parquet")
    (tmp_path / "prices.csv").write_text("content,price\nx,1\n")
    (tmp_path / "package.json").write_text('{"name": "x"}')
    (tmp_path / "list.json").write_text('[{"content": "x"}]')
    files, skipped, records = read(tmp_path)
    assert [file.path for file in files] == ["data/0.jsonl:1", "data/0.jsonl:2", "data/1.parquet:1"] + [
        file.path for file in files[3:]
    ]
    assert not any("prices" in (file.path or "") for file in files) and not records.barren
    assert "row has no `content`" not in skipped


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.jsonl", '{"title": "x", "Stars": 3}\n', "1 × row has no `content`). Its columns are title, Stars. Name"),
        ("a.csv", "title,price\nx,1\n", "columns are title, price"),
        ("a.jsonl", "\n\n", "has no record"),
        ("a.json.gz", "", "gave no row (1 × cannot be read as JSON"),
        ("a.jsonl", "not json\n", "gave no row (1 × line is not a JSON object)"),
    ],
)
def test_a_file_that_gives_nothing_says_why_and_what_to_do(tmp_path: Path, name: str, content: str, why: str):
    data = gzip.compress(content.encode()) if name.endswith(".gz") else content.encode()
    (tmp_path / name).write_bytes(data)
    _, _, records = read(tmp_path / name)
    assert len(records.barren) == 1 and why in records.barren[0]


# --- names of columns ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["text", "code", "Content", "CONTENT", "source_code", "body"])
def test_the_text_has_many_names(tmp_path: Path, name: str):
    assert only(lines(tmp_path / "a.jsonl", {name: CODE})).content == CODE


def test_the_stacks_names_are_understood(tmp_path: Path):
    record = {
        "content": CODE, "lang": "Python", "max_stars_repo_path": "src/a.py", "max_stars_repo_name": "o/r",
        "max_stars_repo_licenses": ["MIT", "Apache-2.0"], "max_stars_count": 3, "avg_line_length": 10.5,
    }  # fmt: skip
    path = lines(tmp_path / "a.jsonl", record)
    file = only(path)
    assert (file.language, file.path, file.repository) == ("python", "src/a.py", "o/r")
    assert file.license == "MIT AND Apache-2.0"
    assert sorted(read(path)[2].unknown) == ["avg_line_length", "max_stars_count"]


def test_a_column_may_be_named_by_hand(tmp_path: Path):
    record = {"payload": CODE, "content": "a summary", "grade": 77, "kind": "rust"}
    columns = {"content": "Payload", "quality_score": "grade", "language": "kind"}
    file = only(lines(tmp_path / "a.jsonl", record), columns=columns)
    assert (file.content, file.quality_score, file.language) == (CODE, 77.0, "rust")


# --- conversations ------------------------------------------------------------------------------------------------

PAIR = [("user", "Write f."), ("assistant", CODE)]
TALKS: dict[str, tuple[dict[str, Any], list[tuple[str, str]]]] = {
    "messages": ({"messages": [{"role": "user", "content": "Write f."}, {"role": "assistant", "content": CODE}]}, PAIR),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "Write f."}, {"from": "gpt", "value": CODE}], "system": "Be kind."},  # noqa: E501
        [("system", "Be kind."), *PAIR],
    ),
    "alpaca": ({"instruction": "Write f.", "input": "", "output": CODE}, PAIR),
    "alpaca with input": (
        {"instruction": "Explain.", "input": "x = 1", "output": "It sets x."},
        [("user", "Explain.\n\nx = 1"), ("assistant", "It sets x.")],
    ),
    "question": ({"question": "Write f.", "answer": CODE}, PAIR),
    "lists of prompt and completion": (
        {"prompt": [{"role": "user", "content": "Write f."}], "completion": [{"role": "assistant", "content": CODE}]},
        PAIR,
    ),
    "parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Write f."}]},
                      {"role": "assistant", "content": CODE}]},
        PAIR,
    ),
    "tools": (
        {"messages": [
            {"role": "developer", "content": "Use tools."},
            {"role": "user", "content": "Run it."},
            {"role": "assistant", "content": None,
             "tool_calls": [{"type": "function", "function": {"name": "run", "arguments": '{"n": 1}'}}]},
            {"role": "tool", "content": "ok"},
            {"role": "assistant", "content": "It ran."},
        ]},
        [("system", "Use tools."), ("user", "Run it."),
         ("assistant", '<tool_call>\n{"name": "run", "arguments": {"n": 1}}\n</tool_call>'), ("tool", "ok"),
         ("assistant", "It ran.")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", TALKS)
def test_a_conversation_keeps_its_turns(tmp_path: Path, kind: str):
    record, turns = TALKS[kind]
    file = only(lines(tmp_path / "a.jsonl", {**record, "license": "MIT"}))
    found = turns_of(file.content, file.metadata)
    assert found is not None and [(turn.role, turn.text) for turn in found] == turns
    assert file.license == "MIT" and file.quality_score == 80.0 and file.language == "text"
    assert all(text.strip() in file.content for _, text in turns), "people can read it"


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ({"messages": [{"role": "user", "content": "a"}]}, "conversation without an answer"),
        ({"messages": [{"role": "alien", "content": "a"}]}, "turn has the unknown role 'alien'"),
        ({"messages": [{"role": "user"}, {"role": "assistant", "content": "a"}]}, "turn without text"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "turn has something that is not text"),
        ({"conversations": ["a", "b"]}, "turn is not an object"),
        ({"prompt": " ", "completion": "x"}, "conversation with an empty question or answer"),
    ],
)
def test_a_conversation_that_cannot_be_used_is_skipped_with_the_reason(tmp_path: Path, record: Any, why: str):
    assert read(lines(tmp_path / "a.jsonl", record))[1] == {why: 1}


def test_a_weight_of_0_is_kept(tmp_path: Path):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0},
             {"role": "user", "content": "c"}, {"role": "assistant", "content": "d", "weight": 1}]  # fmt: skip
    file = only(lines(tmp_path / "a.jsonl", {"messages": turns}))
    found = turns_of(file.content, file.metadata)
    assert found is not None and [turn.is_answer for turn in found] == [False, False, False, True]


# --- values -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "score"), [("12.5", 12.5), (" 90 ", 90.0), (85, 85.0), ("1e1", 10.0)])
def test_a_score_is_read_as_it_is_written(tmp_path: Path, value: Any, score: float):
    assert only(lines(tmp_path / "a.jsonl", {"content": CODE, "quality_score": value})).quality_score == score


@pytest.mark.parametrize("value", [False, True, "good", [90], {"of": 100}])
def test_a_score_that_is_no_number_is_refused_by_name(tmp_path: Path, value: Any):
    skipped = read(lines(tmp_path / "a.jsonl", {"content": CODE, "quality_score": value}))[1]
    assert skipped == {"quality_score is not a number": 1}


def test_a_decimal_score_and_odd_metadata_of_parquet(tmp_path: Path):
    facts = pyarrow.struct([
        ("price", pyarrow.decimal128(10, 2)), ("raw", pyarrow.binary()), ("took", pyarrow.duration("ms")),
        ("ratio", pyarrow.float64()),
    ])  # fmt: skip
    value = {"price": Decimal("1.50"), "raw": b"\xff\xfe", "took": timedelta(seconds=2), "ratio": float("nan")}
    table = pyarrow.table({
        "content": [CODE], "quality_score": pyarrow.array([Decimal("81.5")], pyarrow.decimal128(5, 2)),
        "metadata": pyarrow.array([value], facts),
    })  # fmt: skip
    parquet.write_table(table, tmp_path / "a.parquet")
    file = only(tmp_path / "a.parquet")
    assert file.quality_score == 81.5
    assert file.metadata == {"price": "1.50", "raw": "//4=", "took": 2.0, "ratio": None}


@pytest.mark.parametrize(
    ("given", "stored"),
    [('{"author": "x"}', {"author": "x"}), ("no JSON", {"text": "no JSON"}), ('"text"', {}), (None, {}), ("", {})],
)
def test_metadata_may_be_json_text(tmp_path: Path, given: Any, stored: Any):
    assert only(lines(tmp_path / "a.jsonl", {"content": CODE, "metadata": given})).metadata == stored


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        (["MIT"], "MIT"),
        (["MIT", "GPL-3.0 OR MIT"], "MIT AND (GPL-3.0 OR MIT)"),
        ([], None),
        ("MIT", "MIT"),
        (None, None),
    ],
)
def test_a_list_of_licences_is_an_expression(tmp_path: Path, given: Any, stored: Any):
    assert only(lines(tmp_path / "a.jsonl", {"content": CODE, "license": given})).license == stored


def test_a_licence_that_is_no_text_is_refused_by_name(tmp_path: Path):
    assert read(lines(tmp_path / "a.jsonl", {"content": CODE, "license": {"a": 1}}))[1] == {"license is not text": 1}


@pytest.mark.skipif(not CASES.is_dir(), reason="needs the shared cases of real records")
def test_the_cases():
    for path in sorted(CASES.iterdir()):
        files, skipped, records = read(path)
        assert files and not skipped and not records.barren, path


# --- what stands beside the turns, and other spellings of them ----------------------------------------------------

ASKED, ANSWERED = {"role": "user", "content": "Write f."}, {"role": "assistant", "content": CODE}
CALL = '<tool_call>\n{"name": "g", "arguments": {"a": 1}}\n</tool_call>'


@pytest.mark.parametrize("beside", ["source", "text", "code", "body"])
def test_turns_count_more_than_a_column_that_only_may_hold_the_text(tmp_path: Path, beside: str):
    for record in ({"messages": [ASKED, ANSWERED]}, {"instruction": "Write f.", "output": CODE}):
        file = only(lines(tmp_path / "a.jsonl", {**record, beside: "ai2/oasst1"}))
        turns = turns_of(file.content, file.metadata) or ()
        assert [(turn.role, turn.text) for turn in turns] == PAIR
    own = {"messages": [ASKED, ANSWERED], beside: CODE}
    assert only(lines(tmp_path / "a.jsonl", own), columns={"content": beside}).content == CODE
    assert only(lines(tmp_path / "a.jsonl", {**own, "content": CODE})).content == CODE
    assert "messages" in only(lines(tmp_path / "a.jsonl", {**own, "content": ""})).metadata


@pytest.mark.parametrize(
    ("record", "turns"),
    [
        ({"problem": "Write f.", "solution": CODE}, PAIR),
        (
            {"system_prompt": "Be kind.", "question": "Write f.", "response": CODE},
            [("system", "Be kind."), *PAIR],
        ),
        (
            {"instruction": "And g?", "output": "No.", "history": [["Write f.", CODE]]},
            [*PAIR, ("user", "And g?"), ("assistant", "No.")],
        ),
        ({"messages": json.dumps([ASKED, ANSWERED])}, PAIR),
        (
            {"conversations": [{"from": "human", "value": "Write f.", "role": None, "content": None},
                               {"from": "gpt", "value": CODE, "role": None, "content": None}]},
            PAIR,
        ),
        (
            {"messages": [ASKED, {"role": "assistant", "content": None,
                                  "function_call": {"name": "g", "arguments": '{"a": 1}'}},
                          {"role": "function", "name": "g", "content": "3"}, ANSWERED]},
            [PAIR[0], ("assistant", CALL), ("tool", "3"), PAIR[1]],
        ),
    ],
)  # fmt: skip
def test_other_spellings_of_turns(tmp_path: Path, record: dict[str, Any], turns: list[tuple[str, str]]):
    file = only(lines(tmp_path / "a.jsonl", record))
    assert [(turn.role, turn.text) for turn in turns_of(file.content, file.metadata) or ()] == turns


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ({"messages": [ASKED, {**ANSWERED, "tool_calls": 7}]}, "tool calls that are not a list"),
        ({"instruction": "x", "output": "y", "history": ["x"]}, "history is not a list of questions and answers"),
        ({"instruction": "x", "output": "y", "history": [["x", " "]]}, "history has an empty question"),
    ],
)
def test_odd_turns_are_refused_by_name(tmp_path: Path, record: dict[str, Any], why: str):
    _, skipped, found = read(lines(tmp_path / "a.jsonl", record))
    assert why in next(iter(skipped)) and "--column" not in found.barren[0]


def test_metadata_of_lists_is_no_map(tmp_path: Path):
    assert only(lines(tmp_path / "a.jsonl", {"content": CODE, "metadata": [[[1], 2]]})).metadata == {}


@pytest.mark.parametrize(
    ("name", "text", "rows"),
    [
        ("lines.json", '{"content": "x = 1"}\n\n{"content": "x = 2"}\n', 2),
        ("one.json", '{\n "content": "x = 1"\n}\n', 1),
        ("wrapped.json", '{"version": 1, "data": [{"content": "x = 1"}]}', 1),
        ("commas.ndjson", '{"content": "x = 1"},\n{"content": "x = 2"}\n', 2),
        ("array.jsonl", '[\n {"content": "x = 1"},\n {"content": "x = 2"}\n]\n', 2),
        ("semicolons.csv", 'content;path\n"x = 1";a.py\n"y, z = 2";b.py\n', 2),
        ("tabs.csv", "content\tpath\nx = 1\ta.py\n", 1),
    ],
)
def test_a_named_file_is_read_as_it_is_written(tmp_path: Path, name: str, text: str, rows: int):
    (tmp_path / name).write_text(text)
    files, skipped, _ = read(tmp_path / name)
    assert len(files) == rows and not skipped and files[0].content == "x = 1"
