"""Runs TRL's GRPOTrainer on the toy tasks: python trl_grpo.py ANSWERS STEPS. Its last line is JSON."""

import json
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch
import trl
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from trainer.evaluate.prompts import STOPS, cut
from trainer.evaluate.sandbox.run import run_task
from trainer.evaluate.suites import read_suite
from trainer.model.base import resolve_for
from trainer.model.load import load_base, load_tokenizer
from trainer.model.lora import lora_config
from trainer.recipe_file import load_recipe
from trainer.reward.once import Once

ANSWERS, STEPS = int(sys.argv[1]), int(sys.argv[2])
HERE = Path(__file__).resolve().parent
recipe = resolve_for(load_recipe(HERE / "recipe.yaml"), None)
tokenizer = load_tokenizer(recipe.base)
tasks = {task.prompt: task for task in read_suite(HERE / "tasks.jsonl")}
runner = Once(run_task)
rewarding = []


def passes(prompts, completions, **_):
    """The same reward as ours: all or nothing, from the sandbox."""
    began = time.monotonic()
    pairs = [(tasks[p], cut(c, STOPS["humaneval"])) for p, c in zip(prompts, completions, strict=True)]
    with ThreadPoolExecutor(2) as threads:
        found = [float(outcome.passed) for outcome in threads.map(lambda pair: runner(*pair), pairs)]
    rewarding.append(time.monotonic() - began)
    return found


model = load_base(recipe.base, torch.device("cpu"))
with tempfile.TemporaryDirectory() as folder:
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=passes,
        args=GRPOConfig(
            output_dir=folder, per_device_train_batch_size=ANSWERS * len(tasks), num_generations=ANSWERS,
            max_completion_length=recipe.reward.max_tokens, max_steps=STEPS,
            learning_rate=recipe.training.learning_rate, lr_scheduler_type="constant", loss_type="dr_grpo",
            scale_rewards="none", beta=0.0, temperature=1.0, use_cpu=True, bf16=False, report_to="none",
            save_strategy="no", logging_strategy="no", disable_tqdm=True, optim="adamw_torch", num_iterations=1,
            gradient_checkpointing=False,
        ),
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in tasks] * 50),
        processing_class=tokenizer,
        peft_config=lora_config(replace(recipe.lora, dropout=0.0)),
    )  # fmt: skip
    began = time.monotonic()
    trainer.train()
    whole = (time.monotonic() - began) / STEPS
reward = statistics.fmean(rewarding)
print(json.dumps({"version": trl.__version__, "model": whole - reward, "reward": reward}))
