"""A stream that changes its language: a candidate that learns the new one and forgets the old one is not promoted.

The loss is also measured apart from the program: by transformers and PEFT alone, on files that no run ever held.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from run_folder import embedded, make_row, make_run, program, run
from transformers import AutoModelForCausalLM, AutoTokenizer

from service.cycle.judging import evidence_of
from service.gate.judge import Verdict, judge
from trainer.model.base import source_of
from trainer.recipe import Gate, Recipe
from trainer.records import Row
from trainer.run_dir import RunDirectory, read_json

pytestmark = pytest.mark.long
SEEN, UNSEEN = range(1, 37), range(900, 912)


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return embedded(
        base__compute_dtype="float32",
        data__max_length=384,
        training__num_epochs=6,
        tracking__sample_predictions=0,
        tracking__tensorboard=False,
    )


@pytest.fixture(scope="module")
def first(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """Version 1: it has learned Python."""
    rows = [make_row(n, program(n)) for n in SEEN]
    directory = make_run(tmp_path_factory.mktemp("stream") / "000001", recipe, rows[:24], rows[24:])
    assert run(directory) == 0
    return directory


@pytest.fixture(scope="module")
def second(first: RunDirectory, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A candidate trained on C alone."""
    return trained_on_c(first, recipe, tmp_path_factory.mktemp("candidate") / "000002")


def trained_on_c(first: RunDirectory, recipe: Recipe, root: Path, *, replay: int = 0) -> RunDirectory:
    earlier = [replace(make_row(n, program(n)), fresh=False, run_id=1) for n in SEEN]
    directory = make_run(
        root, recipe, [c_row(n) for n in range(200, 216)], [*(c_row(n) for n in range(300, 312)), *earlier[24:]],
        replay=earlier[:replay], parent=first.adapter, run_id=2,
    )  # fmt: skip
    assert run(directory) == 0
    return directory


def verdict(directory: RunDirectory, gate: Gate) -> Verdict:
    recipe = replace(embedded(), gate=replace(gate, examination=False))
    run_id = int(read_json(directory.manifest)["run_id"])
    return judge(evidence_of(directory, recipe, run_id=run_id, beat=lambda: None))


def c_row(number: int) -> Row:
    chance = random.Random(number)

    def name() -> str:
        return f"{chance.choice(('buf', 'node', 'ctx', 'len'))}_{chance.randrange(100)}"

    body = "".join(f"\tif (({name()} & 0x{chance.randrange(256):02x}) != 0)\n\t\treturn -EINVAL;\n" for _ in range(8))
    text = f"static int {name()}_{number}(struct device *{name()}, size_t {name()})\n{{\n{body}\treturn 0;\n}}\n"
    return replace(make_row(number, text, path=f"file_{number}.c"), language="c")


@torch.no_grad()
def loss_apart(adapter: Path, texts: list[str]) -> float:
    """Return the loss in nats per token, measured without the program's own code for it."""
    source, revision = source_of(embedded().base)
    tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
    base = AutoModelForCausalLM.from_pretrained(source, revision=revision, dtype=torch.float32)
    model: Any = PeftModel.from_pretrained(base, str(adapter)).eval()
    nats = tokens = 0.0
    for text in texts:
        ids = tokenizer(text, return_tensors="pt").input_ids
        nats += float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    return nats / tokens


def test_what_forgets_is_not_promoted_although_it_learned_a_lot(second: RunDirectory):
    found = verdict(second, Gate())
    outcomes = {one.rule: one.outcome for one in found.findings}
    assert not found.promote and outcomes["gain"] == "pass"
    assert outcomes["earlier_current"] == "fail", found.findings
    assert found.intervals["new"].high < -0.3 and found.intervals["earlier"].low > 0.02


def test_the_former_rule_would_have_promoted_it(second: RunDirectory):
    assert verdict(second, Gate(evidence="point", tolerance=0.0)).promote


def test_it_forgot_by_a_measurement_apart_from_the_program(first: RunDirectory, second: RunDirectory):
    unseen = [program(n) for n in UNSEEN]
    assert loss_apart(second.adapter, unseen) > loss_apart(first.adapter, unseen) + 0.02
    new = [c_row(n).content for n in range(400, 406)]
    assert loss_apart(second.adapter, new) < loss_apart(first.adapter, new) - 0.3


def test_with_replay_it_forgets_less_and_is_promoted(first: RunDirectory, recipe: Recipe, tmp_path: Path):
    kept = trained_on_c(first, recipe, tmp_path / "000002", replay=12)
    assert verdict(kept, Gate()).promote, verdict(kept, Gate()).findings
    unseen = [program(n) for n in UNSEEN]
    assert loss_apart(kept.adapter, unseen) < loss_apart(first.adapter, unseen) + 0.02
