"""Steps of TRL's trainers on the tiny checkpoint: writes tiny_trajectories.json beside this file.

    pip install torch==2.13.0 trl==1.16.0 transformers==5.23.0 accelerate datasets
    python make_tiny_trajectories.py

The rows are those of tests/fixtures, four a step and in their order, three times over; everything is f32 on the CPU.
"""

import json
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from make_trajectories import Precise
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer

FIXTURES = Path(__file__).parent.parent / "fixtures"
METRICS = {
    "dpo": ["loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected", "grad_norm"],
    "kto": ["loss", "kl", "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected", "grad_norm"],
    "sft": ["loss", "grad_norm"],
}
SYNC = {"sync_ref_model": True, "ref_model_mixup_alpha": 0.6, "ref_model_sync_steps": 2}
CASES = [("sft", {}), ("dpo", {}), ("dpo", SYNC), ("kto", {}), ("kto", SYNC)]


def rows(name):
    return [json.loads(line) for line in (FIXTURES / name).read_text(encoding="utf-8").splitlines()]


def trained(kind, options):
    config, trainer = {"dpo": (DPOConfig, DPOTrainer), "kto": (KTOConfig, KTOTrainer), "sft": (SFTConfig, SFTTrainer)}[kind]
    data = rows("labels.jsonl" if kind == "kto" else "pairs.jsonl")
    if kind == "sft":
        data = [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in data]
    with tempfile.TemporaryDirectory() as folder:
        ours = type("Ours", (Precise, trainer), {})(
            model=AutoModelForCausalLM.from_pretrained(FIXTURES / "tiny", dtype=torch.float32),
            args=config(
                output_dir=folder, use_cpu=True, bf16=False, gradient_checkpointing=False, per_device_train_batch_size=4,
                num_train_epochs=3, learning_rate=1e-3, lr_scheduler_type="constant", warmup_steps=0,
                train_sampling_strategy="sequential", logging_steps=1, report_to=[], save_strategy="no", max_length=256,
                **options,
            ),
            train_dataset=Dataset.from_list(data),
            processing_class=AutoTokenizer.from_pretrained(FIXTURES / "tiny"),
        )
        ours.train()
    logged = [row for row in ours.state.log_history if "loss" in row]
    assert len(logged) == len(ours.losses)
    for row, loss in zip(logged, ours.losses):
        row["loss"] = loss
    # A batch of one class has no figures of the other.
    number = lambda row, name: float(f"{row[name]:.7g}") if name in row and row[name] == row[name] else None
    return {name: [number(row, name) for row in logged] for name in METRICS[kind]}


def main():
    cases = [{"kind": kind, "options": options, "steps": trained(kind, options)} for kind, options in CASES]
    for case in cases:
        print(case["kind"], case["options"], {name: values[-1] for name, values in case["steps"].items()})
    out = Path(__file__).with_name("tiny_trajectories.json")
    out.write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n", encoding="ascii")


if __name__ == "__main__":
    main()
