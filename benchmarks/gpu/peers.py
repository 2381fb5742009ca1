"""Measure other trainers' steps on the same 4-bit base, samples, LoRA and optimizer.

`measure_peer` is the whole work of one process. These differences remain: the peers pad batches, and we pack them. TRL
keeps the adapter of a 4-bit base in bfloat16. Unsloth reads the base from a folder and adds the adapter itself.
"""

from __future__ import annotations

import importlib.metadata
import statistics
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from peft import get_peft_model
from transformers import DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments
from world import (
    World,
    config_of,
    default_recipe,
    forget,
    limit_memory,
    make_base,
    make_samples,
    memory_facts,
    wait_for,
)

from trainer.data.encoder import TokenSample
from trainer.model.load import load_tokenizer
from trainer.model.lora import lora_config
from trainer.recipe import TINY_BASE, Base, Recipe


class Clock(TrainerCallback):
    """Records the tokens and seconds of each optimizer step."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.steps: list[tuple[int, float]] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        wait_for(self.device)
        self.began, self.tokens = perf_counter(), int(state.num_input_tokens_seen)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        wait_for(self.device)
        self.steps.append((int(state.num_input_tokens_seen) - self.tokens, perf_counter() - self.began))


def measure_peer(world: World, *, peer: str, batch: int) -> dict[str, Any]:
    """Measure a peer's optimizer step, in micro-batches of `batch` samples. A step has as many samples as ours."""
    limit_memory(world)
    recipe, device = default_recipe(world), world.torch_device
    config = config_of(world, world.layers)
    window = recipe.training.batch_size * recipe.training.gradient_accumulation_steps
    samples = make_samples(window * (world.steps + 1), recipe, config.vocab_size, full=False)
    clock = Clock(device)
    torch.set_float32_matmul_precision("high")
    with tempfile.TemporaryDirectory() as folder:
        options = _options(world, recipe, batch=batch, accumulation=window // batch, folder=folder)
        trainer = _TRAINERS[peer](world, recipe, config, samples, options, Path(folder))
        trainer.add_callback(clock)
        trainer.train()
    speeds = [tokens / seconds for tokens, seconds in clock.steps[1:]]
    return {
        "batch": batch,
        "tokens_per_second": statistics.median(speeds),
        "tokens_per_step": statistics.mean(tokens for tokens, _ in clock.steps[1:]),
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "version": importlib.metadata.version(peer.partition("-")[0]),
        **memory_facts(device),
    }


def save_base(world: World, folder: Path) -> None:
    """Save the same base in transformers' 4-bit format. Some peers only load a base from files."""
    recipe = default_recipe(world)
    make_base(config_of(world, world.layers), recipe.base, world.torch_device).save_pretrained(folder)
    load_tokenizer(Base(model=TINY_BASE)).save_pretrained(folder)


def _options(world: World, recipe: Recipe, *, batch: int, accumulation: int, folder: str) -> dict[str, Any]:
    """Return the training arguments that all peers share."""
    training, on_card = recipe.training, world.device == "cuda"
    return {
        "output_dir": folder,
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulation,
        "max_steps": world.steps + 1,
        "learning_rate": training.learning_rate,
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        "optim": "paged_adamw_8bit" if on_card else "adamw_8bit",
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "train_sampling_strategy": "sequential",
        "include_num_input_tokens_seen": "non_padding",
        "use_cpu": not on_card,
        "bf16": True,
        "tf32": training.tf32 if on_card else None,
        "report_to": "none",
        "logging_strategy": "steps",
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def _transformers(
    world: World, recipe: Recipe, config: Any, samples: list[TokenSample], options: dict[str, Any], _: Path
) -> Any:
    model = get_peft_model(make_base(config, recipe.base, world.torch_device), lora_config(recipe.lora))
    model.enable_input_require_grads()
    return Trainer(
        model=model,
        args=TrainingArguments(**options),
        train_dataset=[{"input_ids": s.ids.tolist(), "labels": s.labels.tolist()} for s in samples],
        data_collator=DataCollatorForSeq2Seq(load_tokenizer(Base(model=TINY_BASE)), padding=True),
    )


def _trl(
    world: World, recipe: Recipe, config: Any, samples: list[TokenSample], options: dict[str, Any], _: Path, **more: Any
) -> Any:
    base = make_base(config, recipe.base, world.torch_device)
    return _sft(base, recipe, samples, {**options, **more}, peft_config=lora_config(recipe.lora))


def _trl_liger(*given: Any) -> Any:
    return _trl(*given, use_liger_kernel=True)


def _unsloth(
    world: World, recipe: Recipe, config: Any, samples: list[TokenSample], options: dict[str, Any], folder: Path
) -> Any:
    from unsloth import FastLanguageModel

    save_base(world, folder / "base")
    forget(world.torch_device)
    model, _ = FastLanguageModel.from_pretrained(
        str(folder / "base"), max_seq_length=recipe.data.max_length, load_in_4bit=True, local_files_only=True
    )
    lora = recipe.lora
    model = FastLanguageModel.get_peft_model(
        model,
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
        use_gradient_checkpointing="unsloth",
    )
    return _sft(model, recipe, samples, options)


def _sft(model: Any, recipe: Recipe, samples: list[TokenSample], options: dict[str, Any], **more: Any) -> Any:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    data = [{"input_ids": s.ids.tolist(), "completion_mask": (s.labels != -100).int().tolist()} for s in samples]
    return SFTTrainer(
        model=model,
        args=SFTConfig(**options, max_length=recipe.data.max_length, completion_only_loss=True),
        train_dataset=Dataset.from_list(data),
        processing_class=load_tokenizer(Base(model=TINY_BASE)),
        **more,
    )


_TRAINERS = {"trl-liger": _trl_liger, "trl": _trl, "transformers": _transformers, "unsloth": _unsloth}
