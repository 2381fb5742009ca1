"""`make bench-evaluation` measures held-out losses and generated answers against transformers' own functions.

The model and the samples are those of `make bench`, in the processor's own dtype, with an untrained adapter of rank 64.
In each round, all variants take their turn. The figures are medians of tokens per second.

It writes benchmarks/results/evaluation-<machine>.md.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks" / "cycle")]
from trainer.imports import set_up_torch

set_up_torch()

import torch
from accelerate import Accelerator
from made_run import processor
from peft import LoraConfig, get_peft_model

from trainer.data.batches import collate, pack_samples
from trainer.data.encoder import IGNORED, TokenSample, pad_id
from trainer.evaluate.engines import Request, Sampling
from trainer.evaluate.held_out import HeldOut
from trainer.evaluate.prompts import Question
from trainer.evaluate.transformers_engine import TransformersEngine
from trainer.model.attention import choose_kernel, unpacked_attention
from trainer.model.fused import fuse
from trainer.model.load import compute_dtype, load_base, load_tokenizer
from trainer.model.step import LossModel
from trainer.recipe import Base
from trainer.stop import StopRequest

BUDGET = 4096
"""Tokens of a pass."""
PROMPTS = 32
NEW_TOKENS = 128
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CPU = torch.device("cpu")


class Contest:
    """The model, and everything that is measured on it. Each method returns the tokens it had or made."""

    def __init__(self, work: Path) -> None:
        base = Base(model=str(work / "model"), quantization="none")
        self.tokenizer = load_tokenizer(base)
        self.dtype = compute_dtype(base, CPU)
        self.adapted = self._adapted(base)
        fused = self._adapted(base)
        fuse(fused)
        self.accelerator = Accelerator(cpu=True, mixed_precision="bf16" if self.dtype == torch.bfloat16 else "no")
        self.model = self.accelerator.prepare(LossModel(fused, kernel=choose_kernel(base, CPU, self.dtype)))
        self.samples = list(token_samples(work / "train.jsonl"))[:64]
        self.prompts = [sample.ids[: 40 + 7 * number % 200].tolist() for number, sample in enumerate(self.samples)]

    def _adapted(self, base: Base) -> Any:
        lora = LoraConfig(r=64, lora_alpha=128, lora_dropout=0.05, target_modules=TARGETS, task_type="CAUSAL_LM")
        return get_peft_model(load_base(base, CPU), lora)

    def step(self) -> int:
        """One optimizer step without the optimizer: losses and gradients."""
        self.model.train()
        for pack in pack_samples(range(len(self.samples)), self.samples, budget=BUDGET, rank=0, world=1):
            self.model(collate([self.samples[i] for i in pack]))[0].backward()
        self.model.zero_grad()
        return sum(sample.tokens for sample in self.samples)

    def held_out(self) -> int:
        """The trainer's held-out losses by sample."""
        HeldOut(self.accelerator, self.model, self.samples, budget=BUDGET, stop=StopRequest()).by_sample()
        return sum(sample.tokens for sample in self.samples)

    @torch.no_grad()
    def plain_losses(self) -> int:
        """transformers' own loss, four padded samples at a time, as its Trainer evaluates."""
        self.adapted.eval()
        with unpacked_attention(self.adapted.get_base_model()):
            for start in range(0, len(self.samples), 4):
                part = self.samples[start : start + 4]
                width = max(sample.tokens for sample in part)
                ids, mask = torch.zeros(len(part), width, dtype=torch.long), torch.zeros(len(part), width)
                labels = torch.full_like(ids, IGNORED)
                for row, sample in enumerate(part):
                    ids[row, : sample.tokens], mask[row, : sample.tokens] = sample.ids, 1
                    labels[row, : sample.tokens] = sample.labels
                self.adapted(input_ids=ids, attention_mask=mask, labels=labels)
        return sum(sample.tokens for sample in self.samples)

    def engine(self, batch: int) -> Callable[[], int]:
        """Return what answers all prompts as evaluations do."""

        def answer() -> int:
            engine = TransformersEngine(self.adapted, self.tokenizer, batch_size=batch, on_note=print)
            questions = [Question(ids=tuple(prompt)) for prompt in self.prompts[:PROMPTS]]
            requests = [Request(task_id=str(n), sample=0, question=one) for n, one in enumerate(questions)]
            return sum(made.tokens for made in engine.answer(requests, Sampling(max_tokens=NEW_TOKENS)))

        return answer

    @torch.no_grad()
    def plain_generate(self) -> int:
        """A quarter of the prompts, one after the other."""
        made, pad = 0, pad_id(self.tokenizer)
        self.adapted.eval()
        for prompt in self.prompts[: PROMPTS // 4]:
            ids = torch.tensor([prompt])
            output = self.adapted.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                use_cache=True,
                eos_token_id=[self.tokenizer.eos_token_id, pad],
                pad_token_id=pad,
            )
            made += output.shape[1] - len(prompt)
        return made


def token_samples(file: Path) -> Iterator[TokenSample]:
    for number, line in enumerate(file.open()):
        ids, labels = (torch.tensor(json.loads(line)[key], dtype=torch.int32) for key in ("input_ids", "labels"))
        supervised = int((labels[1:] != IGNORED).sum())
        yield TokenSample(file_id=number, ids=ids, labels=labels, supervised=supervised)


def variants(contest: Contest) -> dict[str, Callable[[], int]]:
    return {
        "training: losses and gradients": contest.step,
        "held-out losses, as the trainer measures them": contest.held_out,
        "held-out losses by transformers, 4 samples padded": contest.plain_losses,
        "answers, 32 at a time (the engine)": contest.engine(32),
        "answers, 16 at a time (the engine)": contest.engine(16),
        "answers by plain `generate`, one at a time": contest.plain_generate,
    }


def measure(rounds: int, named: dict[str, Callable[[], int]]) -> dict[str, list[float]]:
    """Return the tokens per second of each round. A round before them does not count."""
    found: dict[str, list[float]] = {name: [] for name in named}
    for number in range(rounds + 1):
        for name, variant in named.items():
            began = time.perf_counter()
            tokens = variant()
            if number:
                found[name].append(tokens / (time.perf_counter() - began))
        print(f"· round {number} of {rounds}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench-evaluation ARGS=…", description=__doc__.split("\n\n")[0])
    parser.add_argument("rounds", nargs="?", type=int, default=5, help="rounds of all variants")
    rounds = parser.parse_args().rounds
    work = ROOT / "build" / "bench"
    work.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, str(ROOT / "benchmarks" / "step" / "prepare.py"), str(work)], check=True)
    contest = Contest(work)
    found = measure(rounds, variants(contest))
    lines = ["| | tokens/s | lowest and highest round |", "|---|---|---|"]
    for name, speeds in found.items():
        lines.append(f"| {name} | {statistics.median(speeds):,.0f} | {min(speeds):,.0f} to {max(speeds):,.0f} |")
    text = "\n".join(lines)
    name = re.sub(r"[^a-z0-9]+", "-", processor().lower()).strip("-")
    target = ROOT / "benchmarks" / "results" / f"evaluation-{name}.md"
    title = f"# Held-out losses and answers on {processor()}, {str(contest.dtype).removeprefix('torch.')}"
    target.write_text(
        f"{title}\n\n`make bench-evaluation ARGS={rounds}`: medians of {rounds} rounds. The model has 5 M parameters "
        f"and an adapter of rank 64.\nAnswers are {PROMPTS} of at most {NEW_TOKENS} tokens.\n\n{text}\n"
    )
    print(f"{text}\n· {target.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
