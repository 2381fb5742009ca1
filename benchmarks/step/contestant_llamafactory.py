"""Runs LLaMA-Factory's LoRA training on samples of ids (its tokenized_path). It pads to multiples of 8."""

import importlib.machinery
import importlib.metadata
import importlib.util
import sys
import types
from typing import Any

from datasets import Dataset, DatasetDict
from trainer_callback import Referee
from world import ACCUMULATION, BATCH, LORA, MAX_LENGTH, RATE, dtype_name, samples, say, set_threads, work_folder

if importlib.util.find_spec("torchaudio") is None:  # only audio needs it, and PyPI has it for CUDA only
    sys.modules["torchaudio"] = types.ModuleType("torchaudio")
    sys.modules["torchaudio"].__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
from llamafactory.train.tuner import run_exp


class LoadingReferee(Referee):
    """Reports when the model is loaded. Here one call loads and trains."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        say(ready=f"LLaMA-Factory {importlib.metadata.version('llamafactory')}")


set_threads()
ids = work_folder() / "llamafactory-ids"
rows = [{**sample, "attention_mask": [1] * len(sample["input_ids"])} for sample in samples("train")]
DatasetDict(train=Dataset.from_list(rows)).save_to_disk(ids)
run_exp(
    {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": str(work_folder() / "model"),
        "template": "empty",
        "dataset": "in tokenized_path",
        "tokenized_path": str(ids),
        "cutoff_len": MAX_LENGTH,
        "disable_shuffling": True,
        "finetuning_type": "lora",
        "lora_rank": LORA["r"],
        "lora_alpha": LORA["lora_alpha"],
        "lora_dropout": LORA["lora_dropout"],
        "lora_target": ",".join(LORA["target_modules"]),
        "disable_gradient_checkpointing": True,
        "output_dir": str(work_folder() / "results" / "llamafactory"),
        "overwrite_output_dir": True,
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": ACCUMULATION,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch",
        "max_grad_norm": 1.0,
        "num_train_epochs": 100,
        "include_num_input_tokens_seen": "non_padding",
        "use_cpu": True,
        "bf16": dtype_name() == "bfloat16",
        "report_to": "none",
        "logging_strategy": "no",
        "save_strategy": "no",
        "disable_tqdm": True,
    },
    callbacks=[LoadingReferee()],
)
say(done=True)
