"""Conversations through a claim: judged turn by turn, and written with their turns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_hygiene import Careful, code

from db.files import NewFile, insert_files
from db.pool import Pool
from trainer.conversations import Turn, as_messages, readable, turns_of
from trainer.records import Row, read_rows

KEY = "ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8"


@pytest.fixture
def world(pool: Pool, tmp_path: Path) -> Careful:
    made = Careful(pool, tmp_path / "home")
    made.add(*(code(n) for n in range(12)))  # files beside them, so that there is something to hold out
    return made


def talk(answer: str, question: str = "Please write this for me, and explain it as well.") -> tuple[Turn, ...]:
    return Turn(role="user", text=question), Turn(role="assistant", text=answer)


def insert(world: Careful, *talks: tuple[Turn, ...], **facts: Any) -> None:
    insert_files(
        world.pool,
        [
            NewFile(**{"repository": "talks", "path": f"{number}", "language": "text", "content": readable(turns),
                       "quality_score": 80.0, "metadata": {"messages": as_messages(turns)}} | facts)
            for number, turns in enumerate(talks)
        ],
    )  # fmt: skip


def claimed(world: Careful) -> list[Row]:
    run = world.home.run(world.claim().run_id)
    return [row for path in (run.rows, run.held_out) for row in read_rows(path) if row.repository == "talks"]


def test_prose_and_short_answers_are_taken(world: Careful):
    long_line = "This sentence explains the answer in one very long line of prose. " * 20
    insert(world, talk(long_line), talk("Use a set. It finds an item in constant time."))
    rows = claimed(world)
    assert world.rejected() == {} and len(rows) == 2
    found = turns_of(rows[0].content, rows[0].metadata)
    assert found == talk(long_line)


def test_a_secret_in_a_turn_is_replaced_there(world: Careful):
    insert(world, talk(f'client = connect(token="{KEY}")\n' * 3))
    (row,) = claimed(world)
    assert KEY not in json.dumps(row.metadata) and KEY not in row.content
    assert "REDACTED" in json.dumps(row.metadata)


def test_the_same_turns_are_a_duplicate_whatever_the_readable_text_says(world: Careful):
    first, other = talk(code(50)), talk(code(51))
    insert(world, first, other, content="see the metadata for the turns of this conversation, please")
    insert(world, first, path="again", content="another summary of the very same conversation as before")
    assert len(claimed(world)) == 2 and world.rejected() == {"duplicate": 1}


def test_a_solution_of_a_benchmark_in_one_turn_counts(world: Careful, tmp_path: Path):
    solution = "".join(f"    total_{n} = gather_{n}(weights, {n}) + offset_{n}\n" for n in range(8))
    task = {"task_id": "H/1", "prompt": "def f(weights):\n", "canonical_solution": solution, "test": "assert f(1)\n"}
    (tmp_path / "tasks.jsonl").write_text(json.dumps(task))
    world.hygiene(benchmarks=(str(tmp_path / "tasks.jsonl"),))
    insert(
        world, talk(f"def f(weights):\n{solution}"), content="a text that does not show the turns, but is long enough"
    )
    assert claimed(world) == [] and world.rejected() == {"benchmark": 1}


def test_control_tokens_and_a_licence_refuse_a_conversation(world: Careful):
    with world.pool.transaction() as cursor:
        cursor.execute("update code_files set license = 'mit'")
    world.hygiene(licenses=("mit",))
    insert(world, talk("<|im_end|>" * 20), license="mit")
    insert(world, talk("Use a set. It finds an item in constant time."), license="gpl-3.0", path="gpl")
    assert claimed(world) == [] and world.rejected() == {"control_tokens": 1, "license": 1}


def test_a_short_turn_may_name_a_control_token_or_be_a_digest(world: Careful):
    answer = "The token ends a turn. The template writes it after the text of each role, whoever said it. " * 5
    insert(world, talk(answer, "What is <|im_end|>?"), talk("9f86d081884c7d65" * 4, "Hash this, please. " * 60))
    assert len(claimed(world)) == 2 and world.rejected() == {}


@pytest.mark.parametrize("role", [["user"], {"name": "user"}, 1, None])
def test_a_role_of_another_type_is_no_turn(world: Careful, role: object):
    messages = [{"role": role, "content": "x"}, *as_messages(talk("Use a set, which finds an item at once."))]
    insert(world, talk("Use a set."), metadata={"messages": messages})
    (row,) = claimed(world)
    assert len(turns_of(row.content, row.metadata) or ()) == 2


def test_metadata_of_many_levels_rejects_its_row_and_no_other(world: Careful):
    for levels in (90, 700):
        deep: Any = 1
        for _ in range(levels):
            deep = [deep]
        insert(world, talk(code(levels)), path=f"{levels}", metadata={"deep": deep})
    assert len(claimed(world)) == 1 and world.rejected() == {"bad_metadata": 1}
