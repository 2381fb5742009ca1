"""The held-out loss and which rows it is measured on."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from fitting import make_fit
from run_folder import encoder, make_row, program, short_recipe, short_rows, token_samples, tokenizer

from trainer.data.tokenize import tokenize_rows
from trainer.errors import Stopped
from trainer.evaluate.parts import divide_held_out
from trainer.evaluate.predictions import predict
from trainer.model.attention import unpacked_attention
from trainer.stop import StopRequest
from trainer.tracking import prediction_tokens

DATA = short_recipe().data


def held_out_rows(fresh: int, earlier: int):
    rows = [make_row(i, program(i), fresh=i <= fresh) for i in range(1, fresh + earlier + 1)]
    return tokenize_rows(rows, encoder(), DATA, seed=1)


def file_ids(samples):
    return [sample.file_id for sample in samples]


def divided(rows, *, tokens=10**6, **options):
    return divide_held_out(rows, judging_tokens=tokens, stopping_tokens=tokens, **{"seed": 1} | options)


def test_the_two_parts_share_no_file_and_two_of_three_files_judge():
    parts = divided(held_out_rows(6, 3))
    judging, stopping = set(file_ids(parts.judging)), set(file_ids(parts.stopping))
    assert (len(judging), len(stopping)) == (6, 3) and not judging & stopping and parts.disjoint
    assert (len(judging & set(range(1, 7))), len(stopping & set(range(1, 7)))) == (4, 2), "new rows in both"
    assert sorted(file_ids(parts.samples)) == [*range(1, 10)]


def test_a_file_keeps_its_part_in_later_runs():
    first = divided(held_out_rows(9, 0))
    rows = held_out_rows(9, 6)
    runs = {file_id: 7 if file_id <= 9 else None for file_id in rows.file_ids}
    later = divided(replace(rows, runs=runs))
    assert set(file_ids(first.judging)) == set(file_ids(later.judging)) & set(range(1, 10))
    assert set(file_ids(first.stopping)) <= set(file_ids(later.stopping))


def test_new_files_get_half_of_the_tokens_and_earlier_runs_take_turns():
    rows = held_out_rows(30, 60)
    runs = {file_id: None if file_id <= 30 else 1 + file_id % 3 for file_id in rows.file_ids}
    parts = divided(replace(rows, runs=runs), tokens=4000)
    judging = file_ids(parts.judging)
    tokens = sum(sample.tokens for sample in parts.judging)
    new = sum(sample.tokens for sample in parts.judging if sample.file_id <= 30)
    assert 3500 < tokens <= 4000 and 0.4 < new / tokens < 0.65
    of_runs = Counter(runs[file_id] for file_id in set(judging) if file_id > 30)
    assert len(of_runs) == 3 and max(of_runs.values()) - min(of_runs.values()) <= 1
    trunk = divided(replace(rows, runs=runs), tokens=4000, trunk=frozenset({1, 2, 3}))
    assert trunk.judging != parts.judging, "the trunk's files are new ones"


def test_the_same_seed_gives_the_same_parts():
    rows = held_out_rows(4, 20)
    every = divided(rows)
    assert len(every.samples) == 24 and every == divided(rows)
    assert file_ids(every.judging) != file_ids(divided(rows, seed=2).judging)


def test_a_single_file_serves_both_parts():
    one = divided(held_out_rows(1, 0), tokens=1)
    assert len(one.samples) == 1 and file_ids(one.judging) == file_ids(one.stopping) and not one.disjoint
    assert divided(held_out_rows(0, 0), tokens=1).samples == []


def test_samples_that_share_a_file_stay_in_one_part():
    rows = held_out_rows(6, 0)
    shared = {2: ((2, 1), (5, 1)), 3: ((3, 1), (6, 1)), 6: ((6, 1), (2, 1))}  # 2, 3, 5 and 6 hang together
    samples = [replace(s, shares=shared.get(s.file_id, s.shares)) for s in rows.samples]
    parts = divided(replace(rows, samples=samples))
    of_files = [{file for s in part for file, _ in s.shares} for part in (parts.judging, parts.stopping)]
    assert not of_files[0] & of_files[1] and any({2, 3, 5, 6} <= files for files in of_files)


def test_the_score_is_the_mean_over_all_tokens_not_over_batches(tmp_path):
    fit = make_fit(tmp_path)
    with torch.no_grad():
        for name, parameter in fit.context.adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    found = fit.context.held_out.measure()
    fit.context.model.eval()
    loss, correct, tokens = 0.0, 0, 0
    with torch.no_grad():
        for sample in fit.context.held_out.samples:
            with unpacked_attention(fit.context.adapted.get_base_model()):
                logits = fit.context.adapted(input_ids=sample.ids.long()[None]).logits.float()[0, :-1]
            labels = sample.labels[1:].long()
            loss += F.cross_entropy(logits, labels, reduction="sum", ignore_index=-100).item()
            correct += int((logits.argmax(-1) == labels).sum())
            tokens += int((labels != -100).sum())
    assert found.tokens == tokens and len(fit.context.held_out.packs) > 1
    assert found.loss == pytest.approx(loss / tokens, rel=1e-5)
    assert found.token_accuracy == correct / tokens
    anchor = fit.context.held_out.measure_base()
    assert anchor.loss != pytest.approx(found.loss, rel=1e-3)
    assert fit.context.held_out.measure() == found


def test_the_anchor_is_the_base_alone(tmp_path):
    fit = make_fit(tmp_path)
    assert fit.context.held_out.measure_base() == fit.context.held_out.measure()
    assert fit.context.model.training


def test_a_request_to_stop_ends_an_evaluation(tmp_path):
    fit = make_fit(tmp_path)
    fit.context.held_out.stop.request("enough")
    with pytest.raises(Stopped, match="enough"):
        fit.context.held_out.measure()
    assert fit.context.model.training


def test_answers_are_bounded_and_without_control_tokens(tmp_path):
    fit = make_fit(tmp_path)
    samples = token_samples(2)
    answers = predict(fit.context.adapted, tokenizer(), samples, step=3, pad=4074, stop=StopRequest(), budget=800)
    rows = {row.file_id: row for row in short_rows(2)}
    for (prediction, tokens), sample in zip(answers, samples, strict=True):
        assert 0 < tokens <= min(128, sample.supervised)
        assert prediction.prompt.endswith("<|im_start|>assistant\n")
        assert prediction.expected.startswith("```python\n") and prediction.expected.endswith("```")
        assert prediction.expected.split("\n")[-2] in rows[prediction.file_id].content
        assert "<|im_end|>" not in prediction.answer


def test_answers_are_the_same_in_batches_and_one_by_one(tmp_path, monkeypatch):
    fit = make_fit(tmp_path)
    short, long = token_samples(3), token_samples(1, start=9)
    ends = replace(short[0], labels=short[0].labels.clone())
    ends.labels[-20:] = -100  # a smaller limit than the others'
    samples = [ends, *long, *short[1:]]
    sizes: list[int] = []
    generate = fit.context.adapted.generate

    def counted(**given):
        sizes.append(len(given["input_ids"]))
        return generate(**given)

    monkeypatch.setattr(fit.context.adapted, "generate", counted)
    made = {}
    for budget in (1, 700, 5000):
        made[budget] = predict(
            fit.context.adapted, tokenizer(), samples, step=3, pad=4074, stop=StopRequest(), budget=budget
        )
    assert made[1] == made[700] == made[5000]
    assert sizes == [1, 1, 1, 1, 2, 2, 4]


def test_an_answer_in_a_batch_ends_with_its_own_end_token(tmp_path, monkeypatch):
    fit = make_fit(tmp_path)
    samples = token_samples(2)
    pad, end = 4074, tokenizer().eos_token_id
    answers = torch.tensor([[5, end, pad, pad], [5, 6, 7, 8]])
    monkeypatch.setattr(
        fit.context.adapted, "generate", lambda *, input_ids, **_: torch.cat([input_ids, answers], dim=1)
    )
    found = predict(fit.context.adapted, tokenizer(), samples, step=3, pad=pad, stop=StopRequest(), budget=5000)
    assert [tokens for _, tokens in found] == [2, 4]
    fit.context.held_out.stop.request("enough")
    with pytest.raises(Stopped):
        predict(fit.context.adapted, tokenizer(), samples, step=3, pad=pad, stop=fit.context.stop, budget=1)


def test_predictions_need_no_more_memory_than_the_training():
    recipe = short_recipe(training__batch_size=8)
    assert prediction_tokens(recipe) == 4 * recipe.data.max_length
    assert prediction_tokens(short_recipe(training__batch_size=1)) == recipe.data.max_length + 128
    offloaded = replace(recipe, training=replace(recipe.training, offload_checkpoints="always"))
    assert prediction_tokens(offloaded) == recipe.data.max_length + 128
