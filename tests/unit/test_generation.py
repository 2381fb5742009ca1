"""Answers of a real tiny model: the same in any batch, order and run; and what happens when memory runs out."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
from run_folder import short_recipe, tokenizer

from trainer.errors import OutOfMemory, Stopped
from trainer.evaluate.engines import Engine, Model, Request, Sampling
from trainer.evaluate.generate import generate
from trainer.evaluate.prompts import Question
from trainer.evaluate.results import open_results
from trainer.evaluate.sampler import OwnDraw
from trainer.evaluate.transformers_engine import TransformersEngine
from trainer.stop import StopRequest

SAMPLING = Sampling(temperature=0.8, top_p=0.95, max_tokens=24, seed=7)
PROMPTS = (
    "def add(left, right):\n",
    "import os\n\n\ndef find(path):\n    for name in os.listdir(path):\n",
    "class A:\n",
)


def note(_: str) -> None:
    pass


@functools.cache
def model() -> Any:
    return TransformersEngine.load(Model(recipe=short_recipe(), adapter=None), tokenizer(), note)._model


def engine(batch_size: int = 16) -> TransformersEngine:
    return TransformersEngine(model(), tokenizer(), batch_size=batch_size, on_note=note)


def requests(samples: int = 2) -> list[Request]:
    return [
        Request(task_id=f"T/{number}", sample=sample, question=Question(text=text, stops=("\ndef", "\nclass")))
        for number, text in enumerate(PROMPTS)
        for sample in range(samples)
    ]


def texts(made: Any) -> dict[tuple[str, int], str]:
    return {(one.task_id, one.sample): one.text for one in made}


@pytest.mark.parametrize("sampling", [SAMPLING, replace(SAMPLING, temperature=0.0)], ids=["sampled", "greedy"])
def test_an_answer_does_not_depend_on_its_batch(sampling):
    together = texts(engine(16).answer(requests(), sampling))
    assert len(together) == 6
    assert texts(engine(1).answer(requests(), sampling)) == together
    assert texts(engine(4).answer(requests()[::-1], sampling)) == together
    some = requests()[3:5]
    assert texts(engine(16).answer(some, sampling)) == {key: together[key] for key in [("T/1", 1), ("T/2", 0)]}


def test_each_sample_has_a_seed_of_its_own():
    made = texts(engine().answer(requests(4), SAMPLING))
    assert len({made[("T/0", sample)] for sample in range(4)}) > 1
    assert made != texts(engine().answer(requests(4), replace(SAMPLING, seed=8)))
    greedy = texts(engine().answer(requests(2), replace(SAMPLING, temperature=0.0)))
    assert greedy[("T/0", 0)] == greedy[("T/0", 1)]


def test_a_penalty_makes_answers_repeat_less():
    greedy = replace(SAMPLING, temperature=0.0, max_tokens=48)
    (plain,) = engine().answer(requests(1)[:1], greedy)
    (fined,) = engine().answer(requests(1)[:1], replace(greedy, repetition_penalty=3.0))
    words = [tokenizer().encode(made.text) for made in (plain, fined)]
    assert len(set(words[1])) / len(words[1]) > len(set(words[0])) / len(words[0])


def test_what_is_off_is_no_part_of_the_facts():
    assert SAMPLING.facts() == {"temperature": 0.8, "top_p": 0.95, "max_tokens": 24, "seed": 7}
    assert replace(SAMPLING, top_k=50).facts()["top_k"] == 50


def test_greedy_is_what_transformers_generates():
    (made,) = engine().answer(requests(1)[1:2], replace(SAMPLING, temperature=0.0))
    ids = tokenizer()(PROMPTS[1], return_tensors="pt").input_ids
    with torch.no_grad():
        output = model().generate(input_ids=ids, max_new_tokens=24, do_sample=False, use_cache=True, pad_token_id=0)
    whole = tokenizer().decode(output[0, ids.shape[1] :], skip_special_tokens=True)
    assert made.text and whole.startswith(made.text) and made.tokens <= 24


@pytest.mark.parametrize("sampling", [SAMPLING, replace(SAMPLING, temperature=0.0)], ids=["sampled", "greedy"])
def test_the_bases_own_generation_settings_do_not_count(sampling, monkeypatch):
    """Qwen2.5's instruct models come with a repetition penalty, top_k and top_p."""
    before = texts(engine().answer(requests(1), sampling))
    for name, value in {
        "repetition_penalty": 3.0,
        "top_k": 2,
        "top_p": 0.1,
        "temperature": 0.1,
        "do_sample": True,
    }.items():
        monkeypatch.setattr(model().generation_config, name, value)
    assert texts(engine().answer(requests(1), sampling)) == before


def test_a_stop_ends_the_text_and_the_work():
    (whole,) = engine().answer(requests(1)[:1], replace(SAMPLING, temperature=0.0))
    assert whole.finish == "length" and whole.tokens == 24
    stop = whole.text[3:6]
    request = replace(requests(1)[0], question=Question(text=PROMPTS[0], stops=(stop,)))
    (made,) = engine().answer([request], replace(SAMPLING, temperature=0.0))
    assert made.text == whole.text[: whole.text.index(stop)] and made.finish == "stop" and made.tokens < 24


def test_draws_follow_the_probabilities():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(4000, 1)
    for sampling, expected in [
        (Sampling(temperature=1.0), [0.5, 0.3, 0.15, 0.05]),
        (Sampling(temperature=1.0, top_p=0.7), [0.625, 0.375, 0, 0]),
        (Sampling(temperature=0.5), [0.25 / 0.365, 0.09 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365]),
        (Sampling(temperature=1.0, top_p=0.01), [1, 0, 0, 0]),
        (Sampling(temperature=1.0, top_k=2), [0.625, 0.375, 0, 0]),
    ]:
        drawn = OwnDraw(range(4000), sampling)(torch.zeros(4000, 1), logits).argmax(-1)
        shares = torch.bincount(drawn, minlength=4) / 4000
        assert shares.tolist() == pytest.approx(expected, abs=0.03), sampling


class Scarce(TransformersEngine):
    """Memory for two answers at once."""

    most = 2

    def _generate(self, batch: Any, sampling: Sampling) -> Any:
        if len(batch) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super()._generate(batch, sampling)


def test_out_of_memory_halves_the_batch():
    said: list[str] = []
    scarce = Scarce(model(), tokenizer(), batch_size=8, on_note=said.append)
    assert texts(scarce.answer(requests(), SAMPLING)) == texts(engine(8).answer(requests(), SAMPLING))
    assert scarce.batch_size == 2 and [line for line in said if "batches of 4" in line]
    scarce.most = 0
    with pytest.raises(OutOfMemory, match="--max-tokens"):
        list(scarce.answer(requests(), SAMPLING))


def test_a_killed_evaluation_goes_on_with_the_same_texts(tmp_path):
    def to_end(folder: Any, opened: Any, stop: StopRequest) -> dict[tuple[str, int], str]:
        with open_results(folder, {}) as results:
            generate(opened, requests(), SAMPLING, results, stop=stop, on_note=note)
            return texts(results.read_generations().values())

    def stopping() -> Engine:
        class Dying(TransformersEngine):
            def answer(self, requests: Any, sampling: Sampling) -> Any:
                for number, made in enumerate(super().answer(requests, sampling)):
                    if number == 3:
                        stop.request("killed")
                    yield made

        return Dying(model(), tokenizer(), batch_size=2, on_note=note)

    whole = to_end(tmp_path / "whole", engine, StopRequest())
    stop = StopRequest()
    with pytest.raises(Stopped):
        to_end(tmp_path / "part", stopping, stop)
    lines = (tmp_path / "part" / "generations.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 4, "each answer is kept as it comes"
    (tmp_path / "part" / "generations.jsonl").write_text("".join(lines[:3]) + lines[3][:20])
    assert to_end(tmp_path / "part", engine, StopRequest()) == whole

    def never() -> Engine:
        raise AssertionError("nothing is left, so no model is loaded")

    assert to_end(tmp_path / "part", never, StopRequest()) == whole
