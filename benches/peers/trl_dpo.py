"""TRL's DPO step: 8 pairs, the reference scored in the step, bf16 autocast."""

import tempfile

import torch
from common import Clock, arguments, read_pairs
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

given = arguments(__doc__).parse_args()
with tempfile.TemporaryDirectory() as folder:
    options = DPOConfig(
        output_dir=folder, use_cpu=given.device == "cpu", bf16=True, gradient_checkpointing=False,
        per_device_train_batch_size=8, max_steps=given.steps + 1, learning_rate=1e-6, beta=0.1,
        train_sampling_strategy="sequential", logging_steps=1, report_to=[], save_strategy="no",
    )
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32),
        args=options,
        train_dataset=Dataset.from_list(read_pairs(given.pairs)),
        processing_class=AutoTokenizer.from_pretrained(given.model),
    )
    clock = Clock()
    trainer.add_callback(clock)
    trainer.train()
    clock.report(trainer.state)
