"""GRPO's gradient is that of Σ advantage × log p over what was drawn, and its distances are those of the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from fitting import backward, gradients, loss_model
from run_folder import embedded, token_samples, tokenizer

from trainer.data.batches import collate
from trainer.evaluate.engines import Request, Sampling
from trainer.evaluate.prompts import Question
from trainer.model.attention import unpacked_attention
from trainer.model.loss import supervised_loss
from trainer.reward.policy import Policy, token_sample
from trainer.stop import StopRequest

STOPS = ("\ndef", "\nclass")


@pytest.fixture(scope="module")
def policy() -> Iterator[Policy]:
    recipe = embedded(
        base__compute_dtype="float32", lora__rank=4, lora__alpha=8, lora__dropout=0.5, reward__batch_size=8
    )
    yield Policy(recipe, tokenizer(), start=None, stop=StopRequest())


def drawn(policy: Policy, count: int = 8, seed: int = 1) -> list[tuple[list[int], list[int]]]:
    """Draw answers to one question. Returns the ids of prompts and answers."""
    question = Question(text="def add(a, b):\n    return", stops=STOPS)
    requests = [Request(task_id="t", sample=n, question=question) for n in range(count)]
    list(policy.engine.answer(requests, Sampling(temperature=1.0, max_tokens=12, seed=seed)))
    return [policy.engine.ids["t", n] for n in range(count)]


def reference(policy: Policy, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """log p(answer) by transformers' own forward pass."""
    ids = torch.tensor([[*prompt, *answer]])
    with unpacked_attention(policy.adapted.get_base_model()):
        logits = policy.adapted(input_ids=ids, use_cache=False).logits[0].float()
    chosen = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return chosen.gather(1, torch.tensor(answer)[:, None]).sum()


@pytest.mark.parametrize("chunk", [3, 1000])
def test_weighted_loss_and_gradient_are_those_of_torch(chunk, monkeypatch):
    monkeypatch.setattr("trainer.model.loss.CHUNK_LOGITS", chunk * 50)
    generator = torch.Generator().manual_seed(1)
    head = torch.nn.Linear(8, 50, bias=False).requires_grad_(False)
    hidden = torch.randn(20, 8, generator=generator, requires_grad=True)
    targets = torch.randint(0, 50, (20,), generator=generator)
    weights = torch.randn(20, generator=generator)
    found, _ = supervised_loss(hidden, head, targets, weights=weights)
    found.backward()
    ours, hidden.grad = hidden.grad, None
    expected = (F.cross_entropy(head(hidden), targets, reduction="none") * weights).sum()
    expected.backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(ours, hidden.grad, rtol=1e-5, atol=1e-6)


def test_a_pack_of_weighted_samples_is_the_weighted_sum_of_its_samples():
    model = loss_model()
    samples = [
        replace(sample, weight=weight) for sample, weight in zip(token_samples(3), (0.75, -0.25, 1.0), strict=True)
    ]
    whole, ours = backward(model, collate(samples))
    alone = [backward(model, collate([replace(sample, weight=1.0)])) for sample in samples]
    assert whole == pytest.approx(sum(s.weight * loss for s, (loss, _) in zip(samples, alone, strict=True)), rel=1e-4)
    expected = sum(s.weight * gradient for s, (_, gradient) in zip(samples, alone, strict=True))
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)
    first, second = collate(samples).split(1)[:2]
    assert first.weights is not None and set(first.weights.tolist()) == {0.75}
    assert second.weights is not None and set(second.weights.tolist()) == {-0.25}


def test_the_gradient_is_that_of_advantages_times_log_probabilities(policy: Policy):
    answers = drawn(policy)
    advantages = [0.75, -0.25, -0.25, -0.25, 0.5, -0.5, 0.25, -0.25]
    policy.adapted.zero_grad()
    policy.gradients(
        [token_sample(*a, advantage) for a, advantage in zip(answers, advantages, strict=True)], divide_by=40
    )
    ours = gradients(policy.adapted)
    policy.adapted.zero_grad()
    objective = sum(w * reference(policy, *a) for a, w in zip(answers, advantages, strict=True)) / 40
    (-objective).backward()
    expected = gradients(policy.adapted)
    policy.adapted.zero_grad()
    assert float(expected.abs().max()) > 1e-4, "there is a gradient"
    torch.testing.assert_close(ours, expected, rtol=2e-3, atol=1e-6)


def test_a_step_makes_good_answers_likelier(policy: Policy, tmp_path: Path):
    answers = drawn(policy)
    samples = [token_sample(*answers[0], 1.0), token_sample(*answers[1], -1.0)]
    policy.save(tmp_path)
    before = policy.log_probabilities(samples)
    assert before == pytest.approx([reference(policy, *answer).item() for answer in answers[:2]], rel=1e-4)
    assert policy.log_probabilities_at_start(samples) == pytest.approx(before), "nothing was learned yet"
    for _ in range(3):
        policy.step(samples, divide_by=2 * 12, rate=1e-2)
    after = policy.log_probabilities(samples)
    assert after[0] > before[0] + 0.1 and after[1] < before[1] - 0.1
    assert policy.log_probabilities_at_start(samples) == pytest.approx(before)
    assert policy.log_probabilities(samples) == pytest.approx(after), "its own weights are back"
    policy.restore(tmp_path)
    assert policy.log_probabilities(samples) == pytest.approx(before)
    again = drawn(policy)
    assert again == answers, "the same weights draw the same"


def test_the_ids_of_an_answer_end_with_what_ended_it(policy: Policy):
    ids = tokenizer().encode(" a\n\ndef b(c):\n    return")
    cut = policy.engine._up_to_stop(ids, STOPS)
    assert tokenizer().decode(cut).startswith(" a\n\ndef") and len(cut) < len(ids)
    assert "\ndef" not in tokenizer().decode(cut[:-1])
    assert policy.engine._up_to_stop(ids, ()) == ids
    end = tokenizer().eos_token_id
    question = Question(text="x", stops=STOPS)
    request = Request(task_id="e", sample=0, question=question)
    pad = policy.engine._pad
    made = policy.engine._generation(request, [ids[0], end, pad, pad], sorted({end, pad}), 0.0)
    assert (made.text, made.finish) == (" a", "stop")
    assert policy.engine.ids["e", 0] == (tokenizer().encode("x"), [ids[0], end])


def test_there_is_no_dropout(policy: Policy):
    policy.adapted.train()
    rates = {module.p for module in policy.adapted.modules() if isinstance(module, torch.nn.Dropout)}
    assert rates <= {0.0}, "the gradient would be that of another model than the one that answered"
    assert policy.loaded.recipe.lora.dropout == 0.0
