"""Runs Unsloth through its public interface: FastLanguageModel, then TRL's SFTTrainer as Unsloth patches it."""

import importlib.metadata

from unsloth import FastLanguageModel  # first: it changes the libraries that are imported after it

# isort: split
import torch
from datasets import Dataset
from trainer_callback import Referee
from trl import SFTConfig, SFTTrainer
from world import ACCUMULATION, BATCH, LORA, MAX_LENGTH, RATE, dtype_name, samples, say, set_threads, work_folder

set_threads()
model, tokenizer = FastLanguageModel.from_pretrained(
    str(work_folder() / "model"),
    max_seq_length=MAX_LENGTH,
    dtype=getattr(torch, dtype_name()),
    load_in_4bit=False,
    local_files_only=True,
)
shape = {name: value for name, value in LORA.items() if name != "task_type"}
model = FastLanguageModel.get_peft_model(model, **shape, use_gradient_checkpointing=False)
data = [
    {"input_ids": s["input_ids"], "completion_mask": [int(label != -100) for label in s["labels"]]}
    for s in samples("train")
]
trainer = SFTTrainer(
    model=model,
    args=SFTConfig(
        output_dir=str(work_folder() / "unsloth-run"),
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=ACCUMULATION,
        max_length=MAX_LENGTH,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        optim="adamw_torch",
        weight_decay=0.0,
        max_grad_norm=1.0,
        num_train_epochs=100,
        gradient_checkpointing=False,
        completion_only_loss=True,
        train_sampling_strategy="sequential",
        include_num_input_tokens_seen="non_padding",
        use_cpu=True,
        bf16=dtype_name() == "bfloat16",
        report_to="none",
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
    ),
    train_dataset=Dataset.from_list(data),
    processing_class=tokenizer,
    callbacks=[Referee()],
)
say(ready=f"Unsloth {importlib.metadata.version('unsloth')}")
trainer.train()
trainer.model.save_pretrained(work_folder() / "results" / "unsloth")
say(done=True)
