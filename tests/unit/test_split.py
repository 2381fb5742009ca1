"""The held-out split is stable, by repository and path. A top-up leaves enough rows to train on."""

import random
from dataclasses import replace

from db.source import HeldOutPlace, SourceRow
from service.admission.split import Splitter, split_position
from trainer.recipe import Data


def rows(count: int, repository: str = "r") -> list[SourceRow]:
    return [
        SourceRow(
            file_id=n, repository=repository, path=f"{n}.py", language="python", content=f"x = {n}", sha256="0" * 64,
            quality_score=90.0, held_out=False, attempts=0,
        )
        for n in range(1, count + 1)
    ]  # fmt: skip


def decide(data: Data, given: list[SourceRow]) -> dict[int, str]:
    splitter = Splitter(data)
    decided = [pair for row in given for pair in splitter.add(row)] + splitter.rest()
    assert len(decided) == len(given)
    assert splitter.held_out == sum(role == "held_out" for _, role in decided)
    assert splitter.trained == sum(role == "train" for _, role in decided)
    return {row.file_id: role for row, role in decided}


def test_the_fraction_is_kept_and_the_content_does_not_matter():
    given = rows(4000)
    roles = decide(Data(), given)
    share = list(roles.values()).count("held_out") / len(roles)
    assert 0.04 < share < 0.06
    changed = [replace(row, content="something else") for row in given]
    assert decide(Data(), changed) == roles


def test_too_few_are_topped_up_by_the_same_hash():
    given = rows(40)
    roles = decide(Data(min_held_out=8), given)
    held_out = {n for n, role in roles.items() if role == "held_out"}
    by_hash = sorted(given, key=lambda row: split_position(row, "file"))
    assert held_out == {row.file_id for row in by_hash[:8]}


def test_half_of_a_small_claim_stays_for_training():
    roles = decide(Data(min_held_out=8, held_out_fraction=0.0), rows(6))
    assert list(roles.values()).count("train") == 3
    assert decide(Data(min_held_out=8, held_out_fraction=0.0), rows(1)) == {1: "train"}


def test_a_held_out_row_stays_held_out():
    given = [replace(row, held_out=True) for row in rows(20)]
    assert set(decide(Data(min_held_out=0, held_out_fraction=0.0), given).values()) == {"held_out"}


def test_a_repository_is_never_divided():
    given = rows(50, "one") + [replace(row, file_id=row.file_id + 50) for row in rows(50, "two")]
    roles = decide(Data(split="repository", held_out_fraction=0.5), given)
    assert len({roles[n] for n in range(1, 51)}) == 1
    assert len({roles[n] for n in range(51, 101)}) == 1


def test_rows_without_a_path_are_placed_by_their_id():
    nameless = [replace(row, repository=None, path=None) for row in rows(200)]
    assert len({split_position(row, "file") for row in nameless}) == 200


def test_versions_of_a_file_have_one_role():
    """All changes of a file have one path, so they are all trained or all held out."""
    for seed in range(300):
        chance = random.Random(seed)
        given = [replace(row, path=f"{int(chance.expovariate(0.2))}.py") for row in rows(chance.randrange(2, 80))]
        roles = decide(Data(min_held_out=4, held_out_fraction=0.0), given)
        by_path = {row.path: {roles[other.file_id] for other in given if other.path == row.path} for row in given}
        assert all(len(found) == 1 for found in by_path.values()), seed
    for often in range(60):  # for any file with many versions, at any place
        many = [replace(row, path=f"{row.file_id if row.file_id > 20 else often}.py") for row in rows(60)]
        roles = decide(Data(min_held_out=8, held_out_fraction=0.0), many)
        assert len({roles[n] for n in range(1, 21)}) == 1 and 8 <= list(roles.values()).count("held_out") <= 30


def test_a_later_version_of_what_a_top_up_took_is_held_out_too():
    given = rows(40)
    roles = decide(Data(min_held_out=8, held_out_fraction=0.0), given)
    places = [
        HeldOutPlace(file_id=r.file_id, repository="r", path=r.path) for r in given if roles[r.file_id] != "train"
    ]
    splitter = Splitter(Data(min_held_out=8, held_out_fraction=0.0), places)
    later = [pair for row in given for pair in splitter.add(replace(row, file_id=row.file_id + 100))]
    held_out = {row.path for row, role in [*later, *splitter.rest()] if role == "held_out"}
    assert held_out == {place.path for place in places}, "they count, so nothing is added"


def test_a_place_is_known_as_held_out_once_it_is_decided():
    """A row of an earlier run at such a place must not be trained on again."""
    given = rows(40)
    splitter = Splitter(Data(min_held_out=8, held_out_fraction=0.0))
    decided = {row.file_id: role for new in given for row, role in splitter.add(new)}
    decided |= {row.file_id: role for row, role in splitter.rest()}
    earlier_versions = [replace(row, file_id=100 + row.file_id, content="before") for row in given]
    assert {row.file_id - 100 for row in earlier_versions if splitter.holds_out(row)} == {
        n for n, role in decided.items() if role == "held_out"
    }


def test_a_row_whose_earlier_text_was_trained_on_is_not_held_out_to_fill_up_a_run():
    data = Data(held_out_fraction=0.0, min_held_out=4)
    given = rows(20)
    chosen = [file_id for file_id, role in decide(data, given).items() if role == "held_out"]
    assert len(chosen) == 4
    again = [replace(row, trained_texts=frozenset({"0" * 64})) if row.file_id in chosen else row for row in given]
    others = {file_id for file_id, role in decide(data, again).items() if role == "held_out"}
    assert len(others) == 4 and not others & set(chosen)
