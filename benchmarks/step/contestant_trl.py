"""Runs TRL's SFTTrainer. The third argument is plain, packed or chunked (its chunked loss)."""

import sys

import trl
from datasets import Dataset
from peft import LoraConfig
from trainer_callback import Referee
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer
from world import ACCUMULATION, BATCH, LORA, MAX_LENGTH, RATE, dtype_name, load_model, samples, say, work_folder

KIND = sys.argv[3]
OPTIONS = {"plain": {}, "packed": {"packing": True}, "chunked": {"loss_type": "chunked_nll"}}[KIND]

data = [
    {"input_ids": s["input_ids"], "completion_mask": [int(label != -100) for label in s["labels"]]}
    for s in samples("train")
]
config = SFTConfig(
    output_dir=str(work_folder() / f"trl-{KIND}"),
    per_device_train_batch_size=BATCH,
    gradient_accumulation_steps=ACCUMULATION,
    max_length=MAX_LENGTH,
    learning_rate=RATE,
    lr_scheduler_type="constant",
    optim="adamw_torch",
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
    **OPTIONS,
)
trainer = SFTTrainer(
    model=load_model(),
    args=config,
    train_dataset=Dataset.from_list(data),
    processing_class=AutoTokenizer.from_pretrained(work_folder() / "model"),
    peft_config=LoraConfig(**LORA),
    callbacks=[Referee()],
)
say(ready=f"TRL {trl.__version__}, {KIND}")
trainer.train()
trainer.model.save_pretrained(work_folder() / "results" / f"trl-{KIND}")
say(done=True)
