"""A claim refuses duplicates within itself, of earlier runs and of held-out files, with every reason in the ledger."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from modules import code, edited
from test_claim_run import World, published

from db import chunks, settling
from db.files import NewFile, insert_files
from db.statements import QUERIES
from service.cycle.upkeep import Pause
from trainer.recipe import Hygiene
from trainer.records import read_rows
from trainer.run_dir import content_sha256, verify_manifest


class Careful(World):
    """A service that looks for duplicates."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.hygiene()

    def hygiene(self, **options: Any) -> None:
        self.recipe = replace(self.recipe, hygiene=Hygiene(**options))

    def add(self, *contents: str, prefix: str = "a", **facts: Any) -> None:
        insert_files(
            self.pool,
            [
                NewFile(**{"repository": "r", "path": f"{prefix}{number}.py", "language": "python",
                           "content": content, "quality_score": 90.0} | facts)
                for number, content in enumerate(contents)
            ],
        )  # fmt: skip

    def rejected(self) -> Counter[str]:
        settled = self.audit().settled
        return Counter({name.partition(":")[2]: n for name, n in settled.items() if name.startswith("rejected")})

    def give_back(self, run_id: int | None) -> None:
        assert run_id is not None
        settling.give_back(self.pool, self.lease, run_id, state="returned", reason="for the test")

    def roles(self, run_id: int | None) -> dict[str, set[str]]:
        assert run_id is not None
        run = self.home.run(run_id)
        return {"train": {row.path or "" for row in read_rows(run.rows)},
                "held_out": {row.path or "" for row in read_rows(run.held_out) if row.fresh}}  # fmt: skip


@pytest.fixture
def world(pool: Any, tmp_path: Any) -> Careful:
    return Careful(pool, tmp_path / "home")


def test_the_first_of_similar_rows_is_kept(world: Careful):
    texts = [code(n) for n in range(30)]
    world.add(*texts, prefix="first")
    world.add(*(text.replace("\n", "\r\n") for text in texts[:5]), prefix="exact")
    world.add(*(edited(text, 7, lines=2) for text in texts[5:15]), prefix="near")
    claimed = world.claim()
    assert world.rejected() == {"duplicate": 5, "near_duplicate": 10}
    roles = world.roles(claimed.run_id)
    assert roles["train"] | roles["held_out"] == {f"first{n}.py" for n in range(30)}
    assert world.audit().problems == []


def test_changes_are_compared_with_changes(world: Careful):
    """Each row holds the whole file. The same change on another branch is a duplicate. A different change is not."""
    text = code(1)
    world.add(*(code(n) for n in range(200, 220)), text)
    for n in range(6):
        lines = code(300 + n, functions=2).split("\n")
        diff = "--- a/a.py\n+++ b/a.py\n" + "\n".join(f"+{line}" for line in lines)
        facts = {"message": f"change {n}", "before": text, "diff": diff}
        world.add(text + "\n".join(lines), prefix=f"change{n}", metadata=facts, commit_sha=f"{n}")
        if n < 2:
            world.add(text + "\n".join(lines), prefix=f"picked{n}", metadata=facts, commit_sha=f"{n}p")
    claimed = world.claim()
    assert world.rejected() == {"duplicate": 2}
    assert claimed.trained + claimed.held_out == 27
    published_run = claimed.run_id
    world.give_back(published_run)
    assert world.claim().refused == 0  # none is repeated


def test_missing_fingerprints_of_changes_are_added_too(world: Careful):
    world.hygiene(duplicates="none")
    text = code(1)
    change = {"message": "m", "before": text, "diff": "+" + code(2).replace("\n", "\n+")}
    world.add(*(code(n) for n in range(200, 220)))
    world.add(text + code(2), prefix="change", metadata=change, commit_sha="1")
    published(world)
    world.hygiene()
    world.add(text + code(3), prefix="file")
    world.add(text + code(2), prefix="again", metadata=change, commit_sha="2")
    world.claim()
    assert world.rejected() == {"duplicate": 1}


def test_a_benchmark_in_what_a_change_replaced_counts(world: Careful, tmp_path: Any):
    solution = "".join(f"    total_{n} = gather_{n}(weights, {n}) + offset_{n}\n" for n in range(8))
    task = {"task_id": "H/1", "prompt": "def f(weights):\n", "canonical_solution": solution, "test": "assert f(1)\n"}
    (tmp_path / "tasks.jsonl").write_text(json.dumps(task) + "\n")
    world.hygiene(benchmarks=(str(tmp_path / "tasks.jsonl"),))
    world.add(*(code(n) for n in range(200, 220)))
    world.add(
        code(5), prefix="change", metadata={"message": "m", "before": "def f(weights):\n" + solution, "diff": "-x"}
    )
    world.claim()
    assert world.rejected() == {"benchmark": 1}


def test_trained_rows_are_remembered_in_later_runs(world: Careful):
    texts = [code(n) for n in range(30)]
    world.add(*texts)
    published(world)
    world.add(*texts[:4], *(edited(text, 3) for text in texts[4:9]), *(code(n) for n in range(100, 120)), prefix="b")
    claimed = world.claim()
    assert world.rejected() == {"duplicate": 4, "near_duplicate": 5}
    assert claimed.trained + claimed.held_out == 20


def test_no_near_duplicate_of_a_held_out_file_is_ever_trained(world: Careful):
    texts = {f"a{n}.py": code(n) for n in range(40)}
    world.add(*texts.values())
    first = world.claim()
    held_out = world.roles(first.run_id)["held_out"]
    assert len(held_out) >= 8
    world.give_back(first.run_id)  # even while the held-out rows wait to be claimed again
    with world.pool.transaction() as cursor:  # the copies have lower ids, so the claim reads them first
        cursor.execute("update code_files set id = id + 100000")
        cursor.execute("update codelupe.ledger set file_id = file_id + 100000")
        cursor.execute("update codelupe.held_out set file_id = file_id + 100000")
        cursor.execute("update codelupe.fingerprints set file_id = file_id + 100000")
    world.add(*(edited(texts[path], 5) for path in sorted(held_out)), prefix="copy")
    second = world.claim()
    roles = world.roles(second.run_id)
    assert not any(path.startswith("copy") for path in roles["train"] | roles["held_out"])
    assert held_out <= roles["held_out"]
    assert world.rejected() == {"near_duplicate": len(held_out)}


def test_rows_that_come_back_are_no_duplicates_of_themselves(world: Careful):
    world.add(*(code(n) for n in range(30)))
    for _ in range(3):
        claimed = world.claim()
        assert claimed.trained + claimed.held_out == 30 and world.rejected() == {}
        world.give_back(claimed.run_id)
        assert world.audit().problems == []


def test_a_copy_of_a_returned_row_is_taken_instead(world: Careful):
    """Only trained, claimed and held-out rows count. The original may never be claimed again."""
    world.hygiene()
    world.add(*(code(n) for n in range(30)))
    first = world.claim()
    trained = world.roles(first.run_id)["train"]
    world.give_back(first.run_id)
    with world.pool.transaction() as cursor:
        cursor.execute("delete from code_files where path = any(%s)", [sorted(trained)])
    world.add(*(code(int(path[1:-3])) for path in sorted(trained)), prefix="copy")
    world.claim()
    assert world.rejected() == {}


def test_rejected_rows_are_not_compared_with(world: Careful):
    world.add(*(code(n) for n in range(30)))
    claimed = world.claim()
    roles = world.roles(claimed.run_id)
    assert claimed.run_id is not None
    with world.pool.transaction() as cursor:
        cursor.execute(
            "update codelupe.ledger set disposition = 'rejected', reason = 'no_gain', settled_at = now() "
            "where file_id in (select id from code_files where path = any(%s))",
            [sorted(roles["train"])],
        )
        cursor.execute("select path from codelupe.fingerprints join code_files on id = file_id")
        assert {path for (path,) in cursor.fetchall()} == roles["held_out"]


def test_an_undone_claim_remembers_nothing(world: Careful):
    world.add(*(code(n) for n in range(30)))
    world.recipe = replace(world.recipe, data=replace(world.recipe.data, split="repository", held_out_fraction=0.0))
    with pytest.raises(Exception, match="held-out share"):
        world.claim()
    with world.pool.transaction() as cursor:
        cursor.execute("select count(*) from codelupe.fingerprints")
        assert cursor.fetchone() == (0,)


def test_rows_trained_before_fingerprints_existed_get_them(world: Careful):
    texts = [code(n) for n in range(30)]
    world.hygiene(duplicates="none")
    world.add(*texts)
    published(world)
    with world.pool.transaction() as cursor:
        cursor.execute("select count(*) from codelupe.fingerprints")
        assert cursor.fetchone() == (0,)
    world.hygiene()
    world.add(*(edited(text, 3) for text in texts), *(code(n) for n in range(100, 120)), prefix="b")
    claimed = world.claim()
    assert world.rejected() == {"near_duplicate": 30} and claimed.trained + claimed.held_out == 20


def test_only_runs_with_missing_fingerprints_are_read(world: Careful):
    def remembered() -> list[bool]:
        with world.pool.transaction() as cursor:
            cursor.execute("select remembered from codelupe.runs order by run_id")
            return [found for (found,) in cursor.fetchall()]

    def trained() -> None:
        world.claim()
        with world.pool.transaction() as cursor:
            cursor.execute("update codelupe.ledger set disposition = 'trained', settled_at = now()")
            cursor.execute("update codelupe.runs set state = 'failed', ended_at = now() where ended_at is null")

    world.hygiene(duplicates="none")
    world.add(*(code(n) for n in range(30)))
    trained()
    assert remembered() == [False]
    world.hygiene()
    world.add(*(code(n) for n in range(30, 60)), prefix="b")
    trained()
    assert remembered() == [True, True]
    with world.pool.transaction() as cursor:
        cursor.execute("delete from codelupe.fingerprints")
    world.hygiene(duplicates="none")
    world.add(*(code(n) for n in range(60, 90)), prefix="c")
    trained()
    world.hygiene()
    world.add(*(code(n) for n in range(90, 120)), prefix="d")
    world.claim()
    assert remembered() == [True] * 4
    with world.pool.transaction() as cursor:  # the third run's and the fourth's
        cursor.execute("select count(*) from codelupe.fingerprints")
        assert cursor.fetchone() == (60,)


def test_the_similarity_threshold_comes_from_the_recipe(world: Careful):
    texts = [code(n) for n in range(20)]
    world.hygiene(duplicates="exact")
    world.add(*texts, *texts[:3], *(edited(text, 1) for text in texts[3:6]))
    world.claim()
    assert world.rejected() == {"duplicate": 3}


def test_many_rows_are_judged_in_batches(world: Careful):
    """There are several batches, and copies lie batches apart."""
    texts = [code(n, functions=3) for n in range(450)]
    world.settings = replace(world.settings, max_dataset_size=1000)
    world.add(*texts)
    world.add(*(edited(text, 2) for text in texts[:100]), prefix="copy")
    claimed = world.claim()
    assert sum(world.rejected().values()) >= 99
    assert claimed.trained + claimed.held_out + claimed.refused == 550


def test_metadata_of_a_row_reaches_the_run_directory(world: Careful):
    world.add(*(code(n) for n in range(20)), metadata={"author": "a", "n": [1, {"é": None}]}, license="MIT")
    claimed = world.claim()
    assert claimed.run_id is not None
    for path in (world.home.run(claimed.run_id).rows, world.home.run(claimed.run_id).held_out):
        for row in read_rows(path):
            assert row.metadata == {"author": "a", "n": [1, {"é": None}]}


def test_earlier_held_out_rows_keep_their_metadata(world: Careful):
    world.add(*(code(n) for n in range(20)), metadata={"author": "a"})
    published(world)
    world.add(*(code(n) for n in range(100, 120)), prefix="b")
    second = world.claim()
    assert second.run_id is not None
    earlier = [row for row in read_rows(world.home.run(second.run_id).held_out) if not row.fresh]
    assert earlier and all(row.metadata == {"author": "a"} for row in earlier)


def test_every_refusal_is_settled_with_its_reason(world: Careful):
    world.hygiene(licenses=("MIT",))
    world.add(*(code(n) for n in range(20)), license="mit")
    world.add(code(100), license="GPL-3.0-only", prefix="b")
    world.add(code(101), prefix="c")
    world.add("# @generated\n" + code(102), license="MIT", prefix="d")
    world.claim()
    assert world.rejected() == {"license": 1, "no_license": 1, "generated": 1}
    assert world.audit().problems == []


def test_secrets_reach_neither_the_run_directory_nor_the_held_out_table(world: Careful):
    token = "ghp_" + "aB3dE6gH9j" * 3 + "kL2mN5"
    contents = [code(n) + f'\nTOKEN_{n} = "{token}"\n' for n in range(20)]
    world.add(*contents, repository=f"https://{token}@github.com/a/b", metadata={"before": f"token = '{token}'"})
    claimed = world.claim()
    assert claimed.run_id is not None and claimed.secrets == 60
    run = world.home.run(claimed.run_id)
    written = run.rows.read_text() + run.held_out.read_text()
    assert token[4:] not in written and written.count("REDACTED_GITHUB_TOKEN") == 60
    assert verify_manifest(run.root)["secrets_replaced"] == {"GITHUB_TOKEN": 60}
    assert all(row.sha256 == content_sha256(row.content) for row in read_rows(run.rows))
    with world.pool.transaction() as cursor:
        cursor.execute("select count(*) from codelupe.held_out h where h::text like %s", [f"%{token[4:]}%"])
        assert cursor.fetchone() == (0,)
        cursor.execute("select content_sha256 from codelupe.run_rows")
        assert {sha for (sha,) in cursor.fetchall()} == {content_sha256(content) for content in contents}
    assert world.audit().problems == []


def test_no_copy_of_a_held_out_file_with_a_secret_is_trained(world: Careful):
    """The stored text has placeholders. A copy of the file does not."""
    world.hygiene(duplicates="exact")
    contents = [code(n) + f'\nPASSWORD = "x9K!mQ72#pL{n}"\n' for n in range(30)]
    world.add(*contents)
    first = world.claim()
    held_out = world.roles(first.run_id)["held_out"]
    world.give_back(first.run_id)
    with world.pool.transaction() as cursor:
        cursor.execute("update codelupe.ledger set not_before = now() + interval '1 day'")
    world.add(
        *(contents[int(path[1:-3])] for path in sorted(held_out)), *(code(n) for n in range(100, 120)), prefix="b"
    )
    world.claim()
    assert world.rejected() == {"duplicate": len(held_out)}


def test_secrets_may_be_kept(world: Careful):
    world.hygiene(secrets="keep")
    world.add(*(code(n) + '\nTOKEN = "ghp_' + "aB3dE6gH9j" * 3 + 'kL2mN5"\n' for n in range(20)))
    assert world.claim().secrets == 0


def test_a_benchmark_is_refused_and_a_missing_one_pauses_the_service(world: Careful, tmp_path: Any):
    path = tmp_path / "own.jsonl"
    solution = "\n".join(f"    step_{n} = first[{n}] + second[{n}]" for n in range(6))
    task = {"task_id": 1, "prompt": "def f():\n", "canonical_solution": solution, "test": ""}
    path.write_text(json.dumps(task))
    world.hygiene(benchmarks=(str(path),))
    world.add(*(code(n) for n in range(20)), code(30) + "\ndef g(first, second):\n" + solution + "\n")
    world.claim()
    assert world.rejected() == {"benchmark": 1}
    world.give_back(1)
    path.unlink()
    daemon = world.daemon()
    daemon._starting()
    with pytest.raises(Pause, match=r"own\.jsonl cannot be read"):
        daemon._claiming()


def test_surplus_rows_of_a_repository_or_author_wait_for_a_later_run(world: Careful):
    world.hygiene(max_rows_per_repository=20, max_rows_per_author=15)
    world.add(*(code(n) for n in range(50)), repository="flood", prefix="f")
    world.add(*(code(n) for n in range(100, 120)), repository="one", metadata={"author": "Mallory"}, prefix="m")
    world.add(*(code(n) for n in range(200, 205)), repository="two", metadata={"author": " mallory"}, prefix="n")
    world.add(*(code(n) for n in range(300, 320)), repository=None, prefix="o")
    claimed = world.claim()
    assert (claimed.trained + claimed.held_out, claimed.put_off) == (20 + 15 + 20, 30 + 5 + 5)
    assert world.rejected() == {} and world.audit().pending == 40
    roles = world.roles(claimed.run_id)
    taken = roles["train"] | roles["held_out"]
    assert sum(path.startswith("f") for path in taken) == 20 and sum(path[0] in "mn" for path in taken) == 15
    world.give_back(claimed.run_id)
    assert world.audit().pending == 95


def test_a_flood_of_low_ids_does_not_keep_others_out_of_a_run(world: Careful):
    world.settings = replace(world.settings, max_dataset_size=30)
    world.hygiene(max_rows_per_repository=10, duplicates="none")
    world.add(*(code(n, 2) for n in range(200)), repository="flood", prefix="f")
    world.add(*(code(n, 2) for n in range(300, 310)), repository="one", prefix="m")
    world.add(*(code(n, 2) for n in range(400, 410)), repository="two", prefix="n")
    claimed = world.claim()
    assert claimed.trained + claimed.held_out == 30


def test_the_search_for_duplicates_never_reads_all_fingerprints(world: Careful):
    """Without the index, a claim would take quadratic time. Its table has no statistics yet."""
    with world.pool.transaction() as cursor:
        cursor.execute(QUERIES["set_seqscan"], {"scan": "off"})
        parameters = {"stream": "s", "files": [1, 1, 2], "versions": [0, 0, 0], "bands": [1, 2, 3]}
        cursor.execute("explain " + QUERIES["fingerprints_alike"], parameters)
        plan = "\n".join(line for (line,) in cursor.fetchall())
    assert "Index Scan on fingerprints_bands" in plan and "Seq Scan on fingerprints" not in plan


def trained_row(world: Careful) -> int:
    """Publish a run of thirty files. Return one that it was trained on."""
    world.add(*(code(n) for n in range(30)))
    published(world)
    return next(row.file_id for row in read_rows(world.home.run(1).rows))


def change(world: Careful, file_id: int, text: str) -> None:
    with world.pool.transaction() as cursor:
        cursor.execute("update code_files set content = %s where id = %s", [text, file_id])
    chunks.poll(world.pool, world.lease, world.settings.source, world.settings.eligibility)


def test_an_edited_row_is_no_near_duplicate_of_itself(world: Careful):
    file_id = trained_row(world)
    text = code(file_id - 1)
    change(world, file_id, edited(text, 7, lines=2))
    world.add(edited(text, 9, lines=2), prefix="copy")  # another row with nearly the same text is one
    world.add(*(code(n) for n in range(50, 60)), prefix="new")
    assert world.claim().refused == 1
    assert world.rejected() == {"near_duplicate": 1}
    assert world.audit().settled["rejected:near_duplicate"] == 1 and world.audit().superseded == {"trained": 1}


@pytest.mark.parametrize("duplicates", ["near", "none"])
def test_a_text_that_comes_back_under_its_id_is_not_trained_again(world: Careful, duplicates: str):
    file_id = trained_row(world)
    world.hygiene(duplicates=duplicates)
    change(world, file_id, code(99))
    world.add(*(code(n) for n in range(50, 60)), prefix="new")
    claimed = world.claim()
    assert file_id in {row.file_id for row in read_rows(world.home.run(2).rows)}
    world.give_back(claimed.run_id)
    change(world, file_id, code(file_id - 1))
    assert world.claim().refused == 1
    assert world.rejected() == {"duplicate": 1}


def test_an_earlier_text_is_known_when_it_comes_under_another_id(world: Careful):
    """A table that is filled anew often has the same files under other ids."""
    file_id = trained_row(world)
    change(world, file_id, code(99))
    world.add(code(file_id - 1), prefix="copy")
    world.add(*(code(n) for n in range(50, 60)), prefix="new")
    assert world.claim().refused == 1
    assert world.rejected() == {"duplicate": 1}
    assert world.audit().problems == []


def test_an_earlier_held_out_text_may_be_held_out_again_under_another_id(world: Careful):
    world.add(*(code(n) for n in range(30)))
    published(world)
    (held,) = (row for row in list(read_rows(world.home.run(1).held_out))[:1])
    with world.pool.transaction() as cursor:
        cursor.execute("update code_files set path = 'other.py' where id = %s", [held.file_id])
    change(world, held.file_id, code(99))
    with world.pool.transaction() as cursor:
        cursor.execute(
            "insert into code_files (repository, path, language, content, quality_score)"
            " values ('r', %s, 'python', %s, 90)",
            [held.path, held.content],
        )
    world.add(*(code(n) for n in range(50, 60)), prefix="new")
    roles = world.roles(world.claim().run_id)
    assert world.rejected() == {} and held.path in roles["held_out"]
    assert world.audit().problems == []


def test_missing_fingerprints_are_not_made_of_a_later_text(world: Careful):
    world.hygiene(duplicates="none")
    file_id = trained_row(world)
    world.hygiene()
    with world.pool.transaction() as cursor:  # no look has found it yet
        cursor.execute("update code_files set content = %s where id = %s", [code(99), file_id])
    world.add(code(99), *(code(n) for n in range(50, 60)), prefix="new")
    assert world.claim().refused == 0


CONFLICT = "<<<<<<< HEAD\nx = 1\n=======\nx = 2\n>>>>>>> feature\n"
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'ab' * 32}\nsize 12345\n"


def test_conflicts_pointers_and_vendored_paths_of_other_producers(world: Careful):
    world.add(*(code(n) for n in range(10)))
    world.add(code(11) + CONFLICT, POINTER, prefix="bad")
    world.add(code(12), prefix="node_modules/left/m")
    world.hygiene(duplicates="none", vendored="refuse")
    world.claim()
    assert world.rejected() == {"merge_conflict": 1, "lfs_pointer": 1, "vendored": 1}


def test_vendored_paths_are_allowed_by_default(world: Careful):
    world.add(*(code(n) for n in range(10)), prefix="node_modules/left/m")
    claimed = world.claim()
    assert claimed.trained + claimed.held_out == 10 and not world.rejected()


def test_line_ends_and_marks_are_plain_in_a_run_and_the_hash_is_the_sources(world: Careful, query: Any):
    texts = [(chr(0xFEFF) + code(n)).replace("\n", "\r\n") for n in range(10)]
    world.add(*texts, metadata={"before": "a\r\nb"})
    run_id = world.claim().run_id
    assert run_id is not None
    run = world.home.run(run_id)
    rows = [row for path in (run.rows, run.held_out) for row in read_rows(path)]
    assert {row.content for row in rows} == {code(n) for n in range(10)}
    assert {row.metadata["before"] for row in rows} == {"a\nb"}
    hashes = {found for (found,) in query("select content_sha256 from codelupe.run_rows")}
    assert hashes == {content_sha256(text) for text in texts}
