"""Ten steps of TRL's DPOTrainer and SFTTrainer on the pairs of pairs.jsonl: writes trajectories.json beside this file.

    pip install torch==2.13.0 trl==1.16.0 transformers==5.23.0 accelerate datasets
    python make_trajectories.py --model DIR [--only dpo|sft] [--steps 10]

DIR is SmolLM2-135M-Instruct as a Hugging Face directory in f32; policy/tests/vectors/README.md says how to make it.
Everything runs in f32 on the CPU, in one batch of the eight pairs, ten times over, at a constant learning rate: ten
minutes on two cores, and 8 GB.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

BATCH = 8
METRICS = {
    "dpo": ["loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen",
            "logps/rejected", "entropy", "mean_token_accuracy", "grad_norm"],
    "sft": ["loss", "entropy", "mean_token_accuracy", "grad_norm"],
}


def options(folder, steps):
    """What both trainers are told; the rest is TRL's default."""
    return {
        "output_dir": folder, "use_cpu": True, "bf16": False, "gradient_checkpointing": True,
        "per_device_train_batch_size": BATCH, "max_steps": steps, "learning_rate": 1e-6, "lr_scheduler_type": "constant",
        "warmup_steps": 0, "train_sampling_strategy": "sequential", "logging_steps": 1, "report_to": [],
        "save_strategy": "no", "seed": 0,
    }


class Precise:
    """Logs what is logged with all its digits: transformers rounds the loss."""

    def compute_loss(self, *args, **kwargs):
        loss = super().compute_loss(*args, **kwargs)
        self.losses = getattr(self, "losses", [])
        self.losses.append((loss[0] if isinstance(loss, tuple) else loss).item())
        return loss


class PreciseDPO(Precise, DPOTrainer):
    pass


class PreciseSFT(Precise, SFTTrainer):
    pass


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="Hugging Face directory of SmolLM2-135M-Instruct")
    parser.add_argument("--only", choices=list(METRICS), help="leave the other's numbers as they are")
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()
    here = Path(__file__).parent
    pairs = [json.loads(line) for line in (here / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(pairs) == BATCH
    answers = [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in pairs]
    out = here / "trajectories.json"
    found = json.loads(out.read_text()) if out.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        for name, config, trainer, rows in [
            ("dpo", DPOConfig(beta=0.1, **options(folder, arguments.steps)), PreciseDPO, pairs),
            ("sft", SFTConfig(**options(folder, arguments.steps)), PreciseSFT, answers),
        ]:
            if arguments.only not in [None, name]:
                continue
            trainer = trainer(
                model=AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32),
                args=config,
                train_dataset=Dataset.from_list(rows),
                processing_class=AutoTokenizer.from_pretrained(arguments.model),
            )
            trainer.train()
            logged = [row for row in trainer.state.log_history if "loss" in row]
            assert len(logged) == len(trainer.losses) == arguments.steps
            for row, loss in zip(logged, trainer.losses):
                assert abs(row["loss"] - loss) < 1e-3 * max(1.0, abs(loss)), (row["loss"], loss)
                row["loss"] = loss
                print(name, row, flush=True)
            found[name] = {metric: [float(f"{row[metric]:.7g}") for row in logged] for metric in METRICS[name]}
            found[name]["input_tokens"] = int(logged[0]["num_tokens"])
            out.write_text(json.dumps(found, indent=1) + "\n", encoding="ascii")


if __name__ == "__main__":
    main()
