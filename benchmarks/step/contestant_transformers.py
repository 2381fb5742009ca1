"""Runs transformers' own Trainer with PEFT."""

import transformers
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from trainer_callback import Referee
from transformers import AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments
from world import ACCUMULATION, BATCH, LORA, RATE, dtype_name, load_model, samples, say, work_folder

model = get_peft_model(load_model(), LoraConfig(**LORA))
trainer = Trainer(
    model=model,
    args=TrainingArguments(
        output_dir=str(work_folder() / "transformers"),
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=ACCUMULATION,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        optim="adamw_torch",
        max_grad_norm=1.0,
        num_train_epochs=100,
        train_sampling_strategy="sequential",
        include_num_input_tokens_seen="non_padding",
        use_cpu=True,
        bf16=dtype_name() == "bfloat16",
        report_to="none",
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
    ),
    train_dataset=Dataset.from_list(samples("train")),
    data_collator=DataCollatorForSeq2Seq(AutoTokenizer.from_pretrained(work_folder() / "model"), padding=True),
    callbacks=[Referee()],
)
say(ready=f"transformers {transformers.__version__} Trainer")
trainer.train()
model.save_pretrained(work_folder() / "results" / "transformers")
say(done=True)
