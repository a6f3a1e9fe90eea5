"""TRL's GRPO iteration: 4 prompts, 8 completions each of up to 64 tokens, KL on, bf16 autocast."""

import tempfile

import torch
from common import Clock, arguments, distinct_prompts
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

PROMPTS, COMPLETIONS, TOKENS = 4, 8, 64


def short_and_in_lower_case(completions, **_):
    """The same reward as on our side: 1 for lower case, less the distance from 120 characters."""
    texts = [completion[0]["content"] for completion in completions]
    return [float(text.islower()) - abs(len(text) - 120) / 120 for text in texts]


given = arguments(__doc__).parse_args()
with tempfile.TemporaryDirectory() as folder:
    options = GRPOConfig(
        output_dir=folder, use_cpu=given.device == "cpu", bf16=True, gradient_checkpointing=False,
        per_device_train_batch_size=PROMPTS * COMPLETIONS, num_generations=COMPLETIONS, max_completion_length=TOKENS,
        max_steps=given.steps + 1, learning_rate=1e-6, beta=0.04,
        shuffle_dataset=False, logging_steps=1, report_to=[], save_strategy="no",
    )
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32),
        args=options,
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in distinct_prompts(given.pairs)]),
        processing_class=AutoTokenizer.from_pretrained(given.model),
        reward_funcs=[short_and_in_lower_case],
    )
    clock = Clock()
    trainer.add_callback(clock)
    trainer.train()
    clock.report(trainer.state)
