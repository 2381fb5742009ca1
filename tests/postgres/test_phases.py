"""A curriculum as a stream: a run has the rows of one phase, with that phase's epochs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from world import look_around

from db import lease as leases
from db import runs, streams
from db.audit import audit
from db.files import NewFile, insert_files
from db.pool import Pool
from db.source import Source, check_source
from service.cycle.claim import Claimed, claim_run
from service.cycle.claim_files import Start
from service.database import get_ready
from service.errors import PreconditionError
from service.settings.environment import PROJECT_RECIPES
from service.settings.home import Home
from service.settings.load import Settings, load_settings
from trainer.recipe import Gate, Hygiene, pinned
from trainer.recipe_file import load_recipe
from trainer.run_dir import read_json

STREAM = "tiny-codelupe"
CODE = "".join(f"value_{n} = {n}\n" for n in range(20))
PHASES = [
    {"name": "foundation", "num_epochs": 3},
    {"name": "evolution", "num_epochs": 2, "learning_rate": 5e-4},
    {"name": "pr-mastery", "num_epochs": 2},
]


class World:
    """Claims of a stream with phases."""

    def __init__(self, pool: Pool, root: Path) -> None:
        self.pool, self.home = pool, Home(root)
        self.home.prepare()
        recipe = yaml.safe_load((PROJECT_RECIPES / "embedded.yaml").read_text(encoding="utf-8"))
        path = root / "recipe.yaml"
        path.write_text(yaml.safe_dump({**recipe, "phases": PHASES}), encoding="utf-8")
        self.settings: Settings = load_settings(path, environment={"CODELUPE_HOME": str(root)}, env_file=None)
        self.recipe = replace(
            pinned(self.settings.recipe, model="tiny-qwen2", revision="r" * 40),
            hygiene=Hygiene(duplicates="none"),
            gate=Gate(evidence="point", examination=False),
        )
        binding = streams.Binding(source="code_files", base_model="tiny-qwen2", base_revision="r" * 40, lora={})
        streams.bind(pool, STREAM, binding)
        lease = leases.acquire(pool, STREAM, self.home.instance(), 60)
        assert lease is not None
        self.lease = lease

    def insert(self, count: int, phase: str | None) -> None:
        files = [
            NewFile(
                repository="r", path=f"{phase}/{n}.py", language="python", content=f"# {phase} {n}\n{CODE}",
                quality_score=90.0, phase=phase,
            )
            for n in range(count)
        ]  # fmt: skip
        insert_files(self.pool, files)

    def claim(self) -> Claimed:
        look_around(self.pool, self.lease, source=self.settings.source, eligible=self.settings.eligibility)
        return claim_run(self.pool, self.lease, self.home, self.settings, self.recipe, Start())

    def finish(self, run_id: int) -> None:
        """End the run as if its rows were no longer wanted, so that the next claim sees the others."""
        with self.pool.transaction() as cursor:
            cursor.execute("update codelupe.runs set state = 'returned', ended_at = now() where run_id = %s", (run_id,))
            cursor.execute(
                "update codelupe.ledger set disposition = 'trained', settled_at = now() where run_id = %s", (run_id,)
            )


@pytest.fixture
def world(pool: Pool, tmp_path: Path) -> Iterator[World]:
    yield World(pool, tmp_path)


def phases_of(world: World, run_id: int, query: Any) -> Counter[str]:
    return Counter(
        row[0]
        for row in query(
            "select f.phase from codelupe.run_rows r join code_files f on f.id = r.file_id where r.run_id = %s", run_id
        )
    )


def test_each_run_has_the_rows_of_one_phase_in_the_order_of_the_recipe(world: World, query: Any) -> None:
    for phase in ("pr-mastery", "evolution", "foundation"):  # the order of the ids does not matter
        world.insert(20, phase)
    expected = [("foundation", 3, 2e-3), ("evolution", 2, 5e-4), ("pr-mastery", 2, 2e-3)]
    for name, epochs, rate in expected:
        claimed = world.claim()
        assert claimed.run_id is not None and claimed.phase == name
        assert phases_of(world, claimed.run_id, query) == {name: 20}
        directory = world.home.run(claimed.run_id)
        frozen = load_recipe(directory.recipe)
        assert (frozen.training.num_epochs, frozen.training.learning_rate) == (epochs, rate)
        assert read_json(directory.manifest)["phase"] == name
        run = runs.get(world.pool, claimed.run_id)
        assert run is not None and run.phase == name
        world.finish(claimed.run_id)
    assert world.claim().run_id is None


def test_a_phase_with_enough_rows_goes_before_an_earlier_one_with_few(world: World, query: Any) -> None:
    world.insert(3, "foundation")
    world.insert(20, "evolution")
    claimed = world.claim()  # the minimum is 8
    assert claimed.phase == "evolution"


def test_without_a_phase_that_has_enough_the_largest_one_is_trained(world: World) -> None:
    world.insert(3, "foundation")
    world.insert(6, "pr-mastery")
    assert world.claim().phase == "pr-mastery"


def test_rows_of_other_phases_are_ineligible_with_their_reason(world: World) -> None:
    world.insert(10, "foundation")
    world.insert(4, None)
    world.insert(5, "review")
    found = look_around(world.pool, world.lease, source=world.settings.source, eligible=world.settings.eligibility)
    assert (found.rows, dict(found.ineligible)) == (10, {"other_phase": 9})
    assert world.claim().phase == "foundation"
    checked = audit(world.pool, world.settings.source, world.settings.eligibility, STREAM)
    assert checked.ineligible == {"other_phase": 9} and not checked.problems


def test_a_source_without_the_column_is_refused_with_the_way_out(world: World, query: Any) -> None:
    query("create view plain_files as select id, content, language, quality_score from code_files")
    settings = replace(world.settings, source=Source(table="plain_files", with_phase=True))
    with pytest.raises(PreconditionError, match=r"has no column phase.*SOURCE_COLUMNS=phase=NAME"):
        get_ready(world.pool, settings)
    get_ready(
        world.pool, replace(settings, source=Source(table="plain_files"), recipe=replace(settings.recipe, phases=()))
    )


def test_a_stream_without_phases_never_reads_the_column(pool: Pool, query: Any) -> None:
    """A role may have no right to it, and it may mean something else there."""
    query(
        "create view odd_files as select id, content, language, quality_score, 1 / (id - id) as phase from code_files"
    )
    insert_files(pool, [NewFile(repository="r", path="a.py", language="python", content=CODE, quality_score=90.0)])
    binding = streams.Binding(source="odd_files", base_model="tiny-qwen2", base_revision="r" * 40, lora={})
    streams.bind(pool, "odd", binding)
    lease = leases.acquire(pool, "odd", "me", 60)
    assert lease is not None
    found = look_around(pool, lease, source=check_source(pool, Source(table="odd_files")))
    assert found.rows == 1
