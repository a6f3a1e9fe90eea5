"""TRL's RewardTrainer on HH transcripts: trains on one file, and says how the model orders the pairs of another.

The settings are those of `benches/peers/reward_model.toml`, which is our side of it.
"""

import argparse
import gzip
import json
import tempfile
import time

import torch
from common import Clock
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", required=True, help="a Hugging Face directory")
parser.add_argument("--train", required=True, help="gzipped JSON lines with chosen and rejected transcripts")
parser.add_argument("--valid", required=True, help="the same, held out")
parser.add_argument("--max-length", type=int, default=512, help="longer pairs are left out, of both files")
parser.add_argument("--batch", type=int, default=16, help="pairs of a step")
parser.add_argument("--micro-batch", type=int, default=4, help="pairs at once")
parser.add_argument("--learning-rate", type=float, default=2e-5)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--steps", type=int, default=-1, help="steps, for an estimate; without it, one epoch")
parser.add_argument("--save", help="where to write the reward model")
parser.add_argument("--f32", action="store_true", help="compute in f32; else bf16 autocast")
given = parser.parse_args()

SPEAKERS = {"Human": "user", "Assistant": "assistant"}


def conversation(transcript: str) -> list[dict]:
    """The turns of a transcript: each begins with an empty line and its speaker's name."""
    messages = []
    for part in ("\n\n" + transcript.strip()).split("\n\n")[1:]:
        name, colon, text = part.partition(":")
        if colon and name in SPEAKERS:
            messages.append({"role": SPEAKERS[name], "content": text.strip()})
        else:
            messages[-1]["content"] += "\n\n" + part
    return messages


def is_usable(messages: list[dict]) -> bool:
    """Speakers take turns, the assistant has the last word and says something each time."""
    roles = [message["role"] for message in messages]
    takes_turns = roles == [("user", "assistant")[i % 2] for i in range(len(roles))] and len(roles) % 2 == 0
    return takes_turns and all(message["content"] for message in messages if message["role"] == "assistant")


def read(path: str) -> Dataset:
    """The pairs that our side uses: it leaves out broken rows, and those that prefer nothing."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    rows = [{side: conversation(row[side]) for side in ("chosen", "rejected")} for row in rows]
    usable = [row for row in rows if row["chosen"] != row["rejected"] and all(map(is_usable, row.values()))]
    return Dataset.from_list(usable)


with tempfile.TemporaryDirectory() as folder:
    options = RewardConfig(
        output_dir=folder, use_cpu=True, bf16=not given.f32, gradient_checkpointing=False, seed=given.seed,
        per_device_train_batch_size=given.micro_batch, gradient_accumulation_steps=given.batch // given.micro_batch,
        per_device_eval_batch_size=given.micro_batch, num_train_epochs=1,
        max_steps=given.steps, learning_rate=given.learning_rate, lr_scheduler_type="linear", warmup_steps=0,
        max_length=given.max_length, logging_steps=5, report_to=[], save_strategy="no",
    )
    # The fresh head is drawn from torch's own generator.
    torch.manual_seed(given.seed)
    trainer = RewardTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(given.model, num_labels=1, dtype=torch.float32),
        args=options,
        train_dataset=read(given.train),
        eval_dataset=read(given.valid),
        processing_class=AutoTokenizer.from_pretrained(given.model),
    )
    clock = Clock()
    trainer.add_callback(clock)
    began = time.perf_counter()
    trainer.train()
    trained = time.perf_counter()
    figures = {
        "train_pairs": len(trainer.train_dataset),
        "valid_pairs": len(trainer.eval_dataset),
        "steps": len(clock.seconds),
        "train_seconds": trained - began,
        "seconds_per_step": sorted(clock.seconds)[len(clock.seconds) // 2],
    }
    if given.save:
        trainer.save_model(given.save)
    if given.steps < 0:
        metrics = trainer.evaluate()
        figures |= {"accuracy": metrics["eval_accuracy"], "margin": metrics["eval_margin"], "loss": metrics["eval_loss"]}
    print(json.dumps(figures), flush=True)
