"""The samples of a run: new ones, replayed ones, and texts that the base generates."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from strategies import Strategy

from trainer.data.encoder import IGNORED, SampleEncoder, TokenSample, pad_id
from trainer.data.tokenize import tokenize_rows
from trainer.model.attention import unpacked_attention
from trainer.recipe import Recipe
from trainer.records import Row
from trainer.run_dir import write_text

GENERATED_SAMPLES, GENERATED_TOKENS = 7, 128
"""For each batch: texts, and the most tokens of an answer."""


def tokenized(rows: Sequence[Row], encoder: SampleEncoder, recipe: Recipe, seed: int) -> list[TokenSample]:
    """Return the samples of all rows. A row with too many tokens in a line gives none, as in a run."""
    return tokenize_rows(rows, encoder, recipe.data, seed=seed).samples


def samples_of_run(
    new: Sequence[TokenSample], pools: Sequence[Sequence[TokenSample]], strategy: Strategy, draw: random.Random
) -> tuple[list[TokenSample], int]:
    """Return the training samples of a run, and how many tokens of them are replayed.

    Args:
        pools: what can be replayed: the samples of each earlier run, or one pool of generated texts
    """
    everything = sum(sample.tokens for sample in new)
    if not strategy.replay or not pools:
        return list(new), 0
    share = strategy.replay
    wanted = everything * (share / (1 - share) if strategy.added else share)
    replayed = stratified(pools, wanted, draw)
    tokens = sum(sample.tokens for sample in replayed)
    if strategy.added:
        return [*new, *replayed], tokens
    return [*up_to(draw.sample(new, len(new)), everything - tokens), *replayed], tokens


def stratified(pools: Sequence[Sequence[TokenSample]], wanted: float, draw: random.Random) -> list[TokenSample]:
    """Draw samples from the pools in turn, up to `wanted` tokens. The first pool is drawn too."""
    queues = [draw.sample(pool, len(pool)) for pool in pools]
    draw.shuffle(queues)
    in_turn = [queue[place] for place in range(max(map(len, queues))) for queue in queues if place < len(queue)]
    return up_to(in_turn, wanted)


def up_to(samples: Sequence[TokenSample], tokens: float) -> list[TokenSample]:
    """Return the first samples, while half of the next one still fits."""
    taken: list[TokenSample] = []
    left = tokens
    for sample in samples:
        if sample.tokens / 2 > left:
            break
        taken.append(sample)
        left -= sample.tokens
    return taken


def generated(
    path: Path, adapted: Any, tokenizer: Any, prompts: Sequence[TokenSample], seed: int = 0
) -> list[TokenSample]:
    """Return texts that the base alone writes after the prompts of a batch. They are made once and kept in `path`."""
    if not path.exists():
        with adapted.disable_adapter():
            found = _generate(adapted, tokenizer, random.Random(seed).sample(list(prompts), GENERATED_SAMPLES))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(found))  # atomic: two streams may make it at the same time
    samples = []
    for number, (prompt, answer) in enumerate(json.loads(path.read_text())):
        ids = torch.tensor([*prompt, *answer], dtype=torch.int32)
        labels = torch.tensor([*[IGNORED] * len(prompt), *answer], dtype=torch.int32)
        samples.append(TokenSample(file_id=-1 - number, ids=ids, labels=labels, supervised=len(answer)))
    return samples


@torch.no_grad()
def _generate(adapted: Any, tokenizer: Any, prompts: Sequence[TokenSample]) -> list[tuple[list[int], list[int]]]:
    adapted.eval()
    torch.manual_seed(0)
    pad, found = pad_id(tokenizer), []
    with unpacked_attention(adapted.get_base_model()):
        for sample in prompts:
            start = int((sample.labels != IGNORED).nonzero()[0])
            prompt = sample.ids[:start].long()[None]
            output = adapted.generate(
                input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=GENERATED_TOKENS,
                do_sample=True, temperature=1.0, top_k=0, top_p=1.0, use_cache=True,
                eos_token_id=[tokenizer.eos_token_id, pad], pad_token_id=pad,
            )[0, start:]  # fmt: skip
            found.append((prompt[0].tolist(), output.tolist()))
    adapted.train()
    return found
