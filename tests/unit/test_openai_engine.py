"""The client for OpenAI's API, against a small server over a real socket."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from openai_stand_in import KEY, StandIn, stand_in
from run_folder import short_recipe

from trainer.errors import UnusableInput
from trainer.evaluate import openai_engine
from trainer.evaluate.engines import Model, Request, Sampling
from trainer.evaluate.openai_engine import ATTEMPTS, OpenAiEngine
from trainer.evaluate.prompts import Question

SAMPLING = Sampling(temperature=0.8, top_p=0.9, max_tokens=64, seed=3)
TEXT = Question(text="def f():\n", stops=("\nA", "\nB", "\nC", "\nD", "\nE"))
CHAT = Question(messages=(("system", "Be brief."), ("user", "Write f.")))


@pytest.fixture
def server() -> Iterator[StandIn]:
    with stand_in(lambda body: f"    return {body['seed']}\nE = 1") as found:
        yield found


def engine(server: StandIn, **changes: Any) -> OpenAiEngine:
    fields = {"url": f"{server.url}/", "served_name": "codelupe-v000003", "api_key": KEY, "batch_size": 4}
    model = Model(recipe=short_recipe(), adapter=None, **(fields | changes))
    return OpenAiEngine(model, lambda _: None, first_wait=0.01)


def requests(count: int = 1, question: Question = TEXT) -> list[Request]:
    return [Request(task_id="T/1", sample=number, question=question) for number in range(count)]


def test_each_sample_is_a_call_with_its_own_seed(server):
    made = sorted(engine(server).answer(requests(9), SAMPLING), key=lambda one: one.sample)
    assert [one.sample for one in made] == [*range(9)]
    assert [one.text for one in made] == [f"    return {r.seed(SAMPLING)}" for r in requests(9)], (
        "cut at the fifth stop"
    )
    assert {one.finish for one in made} == {"stop"} and made[0].tokens == 5
    path, body = server.calls[0]
    assert path == "/v1/completions" and body["prompt"] == "def f():\n" and body["n"] == 1
    assert body["stop"] == ["\nA", "\nB", "\nC", "\nD"], "OpenAI takes four"
    assert (body["model"], body["temperature"], body["top_p"], body["max_tokens"]) == ("codelupe-v000003", 0.8, 0.9, 64)
    assert len({body["seed"] for _, body in server.calls}) == 9


def test_a_chat_and_token_ids_have_their_own_forms(server):
    server.finish = "length"
    (chat,) = engine(server).answer(requests(question=CHAT), SAMPLING)
    (ids,) = engine(server).answer(requests(question=Question(ids=(5, 6, 7))), SAMPLING)
    (path, body), (_, other) = server.calls
    assert path == "/v1/chat/completions" and body["messages"][1] == {"role": "user", "content": "Write f."}
    assert "stop" not in body and other["prompt"] == [5, 6, 7]
    assert chat.finish == ids.finish == "length" and chat.text.endswith("E = 1")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(server, status):
    server.faults = [(status, "busy"), (status, "busy")]
    (made,) = engine(server).answer(requests(), SAMPLING)
    assert made.text.startswith("    return") and len(server.calls) == 3


def test_a_server_that_stays_busy_ends_it_with_the_way_on(server):
    server.faults = [(503, "loading")] * 20
    with pytest.raises(UnusableInput, match=rf"503: loading \({ATTEMPTS} attempts\). Start the same command again"):
        list(engine(server).answer(requests(), SAMPLING))
    assert len(server.calls) == ATTEMPTS


def test_an_unreachable_server_is_named(server, monkeypatch):
    monkeypatch.setattr(openai_engine, "ATTEMPTS", 2)
    with pytest.raises(UnusableInput, match=r"http://127.0.0.1:9 gave no answer \(ConnectError"):
        list(engine(server, url="http://127.0.0.1:9").answer(requests(), SAMPLING))


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ((404, "The model `x` does not exist."), "404: The model .* --served-name|codelupe-v000003"),
        ((200, "<html>"), "not JSON"),
        ((200, '{"choices": []}'), "unknown form"),
        ((400, f"key {KEY}"), "400: key …"),
    ],
)
def test_what_cannot_succeed_is_not_tried_again(server, fault, problem):
    server.faults = [fault]
    with pytest.raises(UnusableInput, match=problem) as raised:
        list(engine(server).answer(requests(), SAMPLING))
    assert len(server.calls) == 1 and KEY not in str(raised.value)


def test_a_wrong_key_is_named_without_showing_it(server):
    with pytest.raises(UnusableInput, match="Set VLLM_API_KEY") as raised:
        list(engine(server, api_key="wrong-key").answer(requests(), SAMPLING))
    assert "wrong-key" not in str(raised.value)


def test_an_address_and_a_name_are_needed(server):
    with pytest.raises(UnusableInput, match="--url"):
        engine(server, url=None)
    assert replace(SAMPLING, seed=4) != SAMPLING
    assert requests()[0].seed(SAMPLING) != requests()[0].seed(replace(SAMPLING, seed=4))
