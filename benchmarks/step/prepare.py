"""Makes the benchmark's model, and its samples from Python's standard library."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from db.source import Eligibility
from service.intake.demo import demo_files
from trainer.data.encoder import SampleEncoder
from trainer.data.tokenize import tokenize_rows
from trainer.model.load import load_tokenizer
from trainer.recipe import Base, Data
from trainer.records import Row

HELD_OUT = 24


def main() -> None:
    work = Path(sys.argv[1])
    torch.manual_seed(0)
    tokenizer = load_tokenizer(Base(model="tiny-qwen2"))
    config = Qwen2Config(
        hidden_size=256, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, intermediate_size=704,
        vocab_size=8192, max_position_embeddings=4096, tie_word_embeddings=True,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    model.save_pretrained(work / "model")
    tokenizer.save_pretrained(work / "model")
    files = list(demo_files(Eligibility(quality_threshold=0, min_chars=200, max_chars=60_000)))[:220]
    rows = [
        Row(file_id=n, repository="stdlib", path=f.path, language="python", content=f.content,
            sha256=hashlib.sha256(f.content.encode()).hexdigest(), fresh=True)
        for n, f in enumerate(files, 1)
    ]  # fmt: skip
    samples = tokenize_rows(rows, SampleEncoder(tokenizer), Data(max_length=1024), seed=1).samples
    for name, part in (("held_out", samples[:HELD_OUT]), ("train", samples[HELD_OUT:])):
        with (work / f"{name}.jsonl").open("w") as file:
            for sample in part:
                file.write(json.dumps({"input_ids": sample.ids.tolist(), "labels": sample.labels.tolist()}) + "\n")
    tokens = sum(sample.tokens for sample in samples)
    print(f"· {model.num_parameters():,} parameters, {len(samples)} samples, {tokens:,} tokens")


main()
