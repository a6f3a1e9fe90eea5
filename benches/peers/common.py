"""What the scripts beside it share: arguments, prompts, and the line that a comparison reads."""

import argparse
import json
import statistics
import time

import torch
from transformers import TrainerCallback


def arguments(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", required=True, help="a Hugging Face directory")
    parser.add_argument("--pairs", required=True, help="JSON lines with prompt, chosen, rejected")
    parser.add_argument("--steps", type=int, default=2, help="timed steps, after one that is not")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    return parser


def read_pairs(path: str) -> list[dict]:
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def distinct_prompts(path: str) -> list[list[dict]]:
    """The file's prompts in their order, each once."""
    prompts = {json.dumps(pair["prompt"]): pair["prompt"] for pair in read_pairs(path)}
    return list(prompts.values())


def report(seconds: list[float], tokens: int, **more: float) -> None:
    """Prints the figures of the timed steps; `tokens` is their sum over these steps."""
    figures = {"seconds_per_step": statistics.median(seconds), "tokens": tokens, "steps": len(seconds)}
    print(json.dumps(figures | more), flush=True)


def now() -> float:
    """The time, when a GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Clock(TrainerCallback):
    """Times the steps of a Hugging Face trainer, of which the first is warm-up."""

    def __init__(self):
        self.seconds = []

    def on_step_begin(self, *_, **__):
        self.start = now()

    def on_step_end(self, *_, **__):
        self.seconds.append(now() - self.start)

    def report(self, state) -> None:
        seen = [row["num_tokens"] for row in state.log_history if "num_tokens" in row]
        report(self.seconds[1:], int(seen[-1] - seen[0]) if seen else 0)
