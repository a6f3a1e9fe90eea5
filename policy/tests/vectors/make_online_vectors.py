"""Reference numbers of the critic-free online algorithms, into online.json.

Losses, gradients and metrics of GRPO's family and of RLOO come from TRL 1.16's own `_compute_loss`, called on a stub in
place of a trainer. What TRL computes inside its generation loop (advantages, the importance-sampling correction,
RLOO's penalised rewards) and the algorithms it does not have (REINFORCE++, ReMax) are plain transcriptions of the formulas.
Everything is f64; the inputs are exact in f32.

    pip install torch==2.13.0 trl==1.16.0
    python make_online_vectors.py
"""

import json
import math
import random
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import torch
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_trainer import RLOOTrainer

LIMIT = 9  # max_completion_length


def f32(value):
    return torch.tensor(value, dtype=torch.float32).item()


def make_group(rng, rewards, lengths, greedy):
    def noisy(values, scale):
        return [f32(min(value + rng.gauss(0.0, scale), -1e-4)) for value in values]

    branches = []
    for reward, length in zip(rewards, lengths):
        old = [f32(-rng.uniform(0.01, 6.0)) for _ in range(length)]
        branches.append(
            {
                "reward": f32(reward),
                "truncated": length == LIMIT,
                "old": old,
                "sampled": noisy(old, 0.1),
                "logps": noisy(old, 0.3),
                "reference": noisy(old, 0.2),
                "entropies": [f32(rng.uniform(0.0, 5.0)) for _ in range(length)],
            }
        )
    return {"greedy_reward": f32(greedy), "branches": branches}


def data_sets():
    rng = random.Random(7)
    ragged = [
        make_group(rng, [0.0, 1.0, 0.0, 0.25], [3, 1, LIMIT, 5], 0.5),
        make_group(rng, [1.0, 1.0, 1.0, 1.0], [2, 4, 6, 1], 1.0),  # no variance
        make_group(rng, [1000.5, -3.0, 0.001, 0.25], [7, 2, 3, LIMIT], -3.0),
    ]
    # Extremes: a token that was next to impossible, one that became so, and one that left it.
    first = ragged[0]["branches"]
    first[0]["old"][1], first[0]["logps"][1] = f32(-60.25), f32(-59.5)
    first[0]["sampled"][1], first[0]["reference"][1] = f32(-60.0), f32(-58.0)
    first[3]["logps"][2] = f32(first[3]["old"][2] - 12.0)
    last = ragged[2]["branches"]
    last[1]["old"][0], last[1]["sampled"][0] = f32(-9.0), f32(-9.0)
    last[1]["logps"][0], last[1]["reference"][0] = f32(-1.0), f32(-8.0)
    equal = [make_group(rng, [0.5] * 3, [2, 3, 1], 0.5), make_group(rng, [0.5] * 3, [1, LIMIT, 4], 0.5)]
    return {"ragged": ragged, "equal": equal}


def pad(groups, key):
    rows = [branch[key] for group in groups for branch in group["branches"]]
    width = max(map(len, rows))
    return torch.tensor([row + [0.0] * (width - len(row)) for row in rows], dtype=torch.float64)


def mask_of(groups, skip_truncated):
    rows = [branch for group in groups for branch in group["branches"]]
    width = max(len(row["logps"]) for row in rows)
    keep = [0.0 if skip_truncated and row["truncated"] else 1.0 for row in rows]
    return torch.tensor([[k] * len(r["logps"]) + [0.0] * (width - len(r["logps"])) for r, k in zip(rows, keep)], dtype=torch.float64)


def flatten(groups, matrix):
    lengths = [len(branch["logps"]) for group in groups for branch in group["branches"]]
    return [value for row, length in zip(matrix.tolist(), lengths) for value in row[:length]]


def rewards_of(groups, config):
    buffer, penalty = config.get("overlong_buffer", 0.0) * LIMIT, config.get("overlong_penalty", 1.0)
    rewards = []
    for group in groups:
        row = []
        for branch in group["branches"]:
            shaped = branch["reward"]
            if buffer > 0:
                excess = len(branch["logps"]) - (LIMIT - buffer)
                shaped -= penalty * min(max(excess / buffer, 0.0), 1.0)
            row.append(shaped)
        rewards.append(row)
    return torch.tensor(rewards, dtype=torch.float64)


class Accelerator:
    num_processes = 1
    sync_gradients = True
    reduce = staticmethod(lambda tensor, reduction: tensor)
    gather = staticmethod(lambda tensor: tensor)


def stub(logps, entropies, **attributes):
    return SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (logps, entropies, None),
        _metrics={"train": defaultdict(list)},
        model=SimpleNamespace(training=True),
        accelerator=Accelerator(),
        aux_loss_enabled=False,
        current_gradient_accumulation_steps=1,
        max_completion_length=LIMIT,
        **attributes,
    )


def inputs_of(groups, mask):
    empty = torch.zeros(mask.shape[0], 0, dtype=torch.long)
    return {"prompt_ids": empty, "prompt_mask": empty, "completion_ids": mask.long(), "completion_mask": mask}


def reward_metrics(groups, deviations):
    raw = torch.tensor([branch["reward"] for group in groups for branch in group["branches"]], dtype=torch.float64)
    zero = torch.isclose(deviations, torch.zeros_like(deviations)).double().mean()
    return {"reward": raw.mean().item(), "reward_std": raw.std().item(), "frac_reward_zero_std": zero.item()}


def grpo(groups, logps, entropies, config):
    mask = mask_of(groups, config.get("mask_truncated_completions", False))
    rewards = rewards_of(groups, config)
    scale = config.get("scale_rewards", "group")
    deviations = rewards.std(dim=1, keepdim=True).expand_as(rewards)
    if scale == "batch":
        deviations = rewards.std().expand_as(rewards)
    advantages = rewards - rewards.mean(dim=1, keepdim=True)
    if scale != "none":
        advantages = advantages / (deviations + 1e-4)
    mode = config.get("importance_sampling_mode", "none")
    old = pad(groups, "old") if mode != "none" else pad(groups, "sampled")
    inputs = inputs_of(groups, mask) | {
        "advantages": advantages.flatten(),
        "old_per_token_logps": old,
        "ref_per_token_logps": pad(groups, "reference"),
        "num_items_in_batch": mask.sum(),
    }
    metrics = {}
    if mode != "none":
        difference = (old - pad(groups, "sampled")) * mask
        ratio = torch.exp(difference.sum(-1, keepdim=True) if mode.startswith("sequence") else difference)
        low, high = config.get("importance_sampling_clip_min"), config.get("importance_sampling_clip_max", 3.0)
        if mode.endswith("truncate"):
            ratio = ratio.clamp(min=low, max=high)
        else:
            ratio = ratio.masked_fill((ratio < (-math.inf if low is None else low)) | (ratio > high), 0.0)
        inputs["importance_sampling_ratio"] = ratio
        flat = ratio.flatten() if mode.startswith("sequence") else ratio[mask.bool()]
        for name in ["min", "mean", "max"]:
            metrics[f"sampling/importance_sampling_ratio/{name}"] = getattr(flat, name)().item()
        metrics["sampling/sampling_logp_difference/mean"] = difference[mask.bool()].abs().mean().item()
        metrics["sampling/sampling_logp_difference/max"] = difference[mask.bool()].abs().max().item()
    epsilon = config.get("epsilon", 0.2)
    trainer = stub(
        logps,
        entropies,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=config.get("importance_sampling_level", "token"),
        beta=config.get("beta", 0.0),
        loss_type=config.get("loss_type", "dapo"),
        epsilon_low=epsilon,
        epsilon_high=config.get("epsilon_high", epsilon),
        use_vllm=mode != "none",
        vllm_importance_sampling_correction=True,
        use_adaptive_entropy=False,
        entropy_coef=config.get("entropy_coef", 0.0),
        _entropy_bonus_enabled=config.get("entropy_coef", 0.0) != 0.0,
        args=SimpleNamespace(
            use_bias_correction_kl=config.get("use_bias_correction_kl", True),
            delta=config.get("delta"),
            steps_per_generation=1,
        ),
    )
    loss = GRPOTrainer._compute_loss(trainer, None, inputs)
    metrics |= {name: values[0] for name, values in trainer._metrics["train"].items() if name != "entropy_coef"}
    return loss, metrics | reward_metrics(groups, deviations)


def rloo(groups, logps, entropies, config):
    mask = mask_of(groups, config.get("mask_truncated_completions", False))
    old = pad(groups, "sampled")
    beta, epsilon = config.get("beta", 0.05), config.get("epsilon", 0.2)
    kl = (old - pad(groups, "reference")) * mask
    rewards = rewards_of(groups, {})
    if "reward_clip_range" in config:
        rewards = rewards.clamp(*config["reward_clip_range"])
    rewards = rewards - beta * kl.sum(-1).view_as(rewards)
    size = rewards.shape[1]
    advantages = rewards - (rewards.sum(dim=1, keepdim=True) - rewards) / (size - 1)
    if config.get("normalize_advantages", False):
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-4)
    inputs = inputs_of(groups, mask) | {"advantages": advantages.flatten(), "old_logps": (old * mask).sum(1)}
    trainer = stub(logps, entropies, epsilon_low=epsilon, epsilon_high=config.get("epsilon_high", epsilon))
    loss = RLOOTrainer._compute_loss(trainer, None, inputs)
    metrics = {name: values[0] for name, values in trainer._metrics["train"].items()}
    if beta != 0.0:
        metrics["kl"] = (kl.sum() / mask.sum()).item()
    deviations = rewards.std(dim=1, keepdim=True).expand_as(rewards)
    return loss, metrics | reward_metrics(groups, deviations)


def returns_to_go(per_token):
    return per_token.flip(-1).cumsum(-1).flip(-1)


def surrogate(logps, old, advantages, config):
    ratio = torch.exp(logps - old)
    epsilon = config.get("epsilon", 0.2)
    clipped = ratio.clamp(1 - epsilon, 1 + config.get("epsilon_high", epsilon))
    return -torch.min(ratio * advantages, clipped * advantages)


def aggregated(losses, mask, how, groups):
    sums = (losses * mask).sum(-1)
    lengths = mask.sum(-1).clamp(min=1.0)
    if how == "token":
        return sums.sum() / mask.sum()
    if how == "sequence":
        return (sums / lengths).mean()
    if how == "group":
        return (sums / lengths).view(len(groups), -1).mean(dim=1).mean()
    return sums.sum() / (len(sums) * LIMIT)


def penalised(groups, rewards, beta, mask):
    """Returns to go of -beta k1 at each token and the reward at the last one."""
    per_token = -beta * (pad(groups, "sampled") - pad(groups, "reference")) * mask
    last = mask.sum(-1).long() - 1
    per_token[torch.arange(len(last)), last] += rewards.flatten()
    return returns_to_go(per_token) * mask


def reinforce_pp(groups, logps, entropies, config):
    mask = mask_of(groups, False)
    kept = mask_of(groups, config.get("mask_truncated_completions", False))
    old, beta = pad(groups, "sampled"), config.get("beta", 0.01)
    rewards = rewards_of(groups, {})
    if config.get("baseline", False):
        advantages = (rewards - rewards.mean(dim=1, keepdim=True)).view(-1, 1) * mask
    else:
        advantages = penalised(groups, rewards, beta, mask)
    mean = (advantages * kept).sum() / kept.sum()
    variance = (((advantages - mean) ** 2) * kept).sum() / kept.sum()
    losses = surrogate(logps, old, (advantages - mean) * variance.clamp(min=1e-8).rsqrt(), config)
    metrics = {}
    if config.get("baseline", False):
        kl = (logps - pad(groups, "reference")) ** 2 / 2
        metrics["kl/k2"] = ((kl * kept).sum() / kept.sum()).item()
        losses = losses + beta * kl
    else:
        metrics["kl/k1"] = (((old - pad(groups, "reference")) * kept).sum() / kept.sum()).item()
    loss = aggregated(losses, kept, config.get("aggregation", "token"), groups)
    return loss, metrics | reward_metrics(groups, rewards.std(dim=1))


def remax(groups, logps, entropies, config):
    mask = mask_of(groups, False)
    rewards = rewards_of(groups, {})
    greedy = torch.tensor([[group["greedy_reward"]] for group in groups], dtype=torch.float64)
    advantages = penalised(groups, rewards - greedy, config.get("beta", 0.05), mask)
    losses = surrogate(logps, pad(groups, "sampled"), advantages, config)
    loss = aggregated(losses, mask, config.get("aggregation", "constant"), groups)
    return loss, {"reward/greedy": greedy.mean().item()} | reward_metrics(groups, rewards.std(dim=1))


DR_GRPO = {"loss_type": "dr_grpo", "scale_rewards": "none"}
DAPO = {"epsilon_high": 0.28, "overlong_buffer": 0.2}
GSPO = {"loss_type": "grpo", "epsilon": 3e-4, "epsilon_high": 4e-4, "importance_sampling_level": "sequence", "importance_sampling_mode": "token_truncate"}
CISPO = {"loss_type": "cispo", "epsilon_high": 5.0}

# Kind, options as in an experiment file, what the kind's own defaults add to TRL's, function.
CASES = [
    ("grpo", {}, {}, grpo),
    ("grpo", {"loss_type": "grpo", "beta": 0.04}, {}, grpo),
    ("grpo", {"loss_type": "grpo", "beta": 0.04, "use_bias_correction_kl": False, "delta": 3.0}, {}, grpo),
    ("grpo", {"loss_type": "bnpo", "scale_rewards": "batch", "entropy_coef": 0.01}, {}, grpo),
    ("grpo", {"loss_type": "grpo", "mask_truncated_completions": True, "scale_rewards": "none", "beta": 0.1}, {}, grpo),
    ("grpo", {"mask_truncated_completions": True, "entropy_coef": -0.02, "epsilon": 0.1}, {}, grpo),
    ("grpo", {"importance_sampling_mode": "token_truncate", "importance_sampling_clip_max": 1.1, "importance_sampling_clip_min": 0.95}, {}, grpo),
    ("grpo", {"importance_sampling_mode": "token_mask", "importance_sampling_clip_max": 1.1, "mask_truncated_completions": True}, {}, grpo),
    ("grpo", {"importance_sampling_mode": "sequence_truncate", "importance_sampling_clip_max": 1.05}, {}, grpo),
    ("grpo", {"importance_sampling_mode": "sequence_mask", "importance_sampling_clip_max": 1.2, "importance_sampling_clip_min": 0.8}, {}, grpo),
    ("dr_grpo", {}, DR_GRPO, grpo),
    ("dr_grpo", {"beta": 0.02, "mask_truncated_completions": True}, DR_GRPO, grpo),
    ("dapo", {}, DAPO, grpo),
    ("gspo", {}, GSPO, grpo),
    ("gspo", {"epsilon": 0.05, "epsilon_high": 0.1, "beta": 0.04, "mask_truncated_completions": True}, GSPO, grpo),
    ("cispo", {}, CISPO, grpo),
    ("cispo", {"epsilon_high": 1.2, "importance_sampling_level": "sequence"}, CISPO, grpo),
    ("rloo", {}, {}, rloo),
    ("rloo", {"beta": 0.0, "epsilon_high": 0.3}, {}, rloo),
    ("rloo", {"normalize_advantages": True, "reward_clip_range": [-1.0, 1.0], "mask_truncated_completions": True}, {}, rloo),
    ("reinforce_pp", {}, {}, reinforce_pp),
    ("reinforce_pp", {"baseline": True, "aggregation": "group", "mask_truncated_completions": True}, {}, reinforce_pp),
    ("reinforce_pp", {"aggregation": "sequence", "epsilon_high": 0.28}, {}, reinforce_pp),
    ("remax", {}, {}, remax),
    ("remax", {"aggregation": "token", "beta": 0.0}, {}, remax),
]


def main():
    data = data_sets()
    cases = []
    for kind, options, defaults, function in CASES:
        for name, groups in data.items():
            logps = pad(groups, "logps").requires_grad_()
            entropies = pad(groups, "entropies").requires_grad_()
            loss, metrics = function(groups, logps, entropies, defaults | options)
            loss.backward()
            gradient = entropies.grad if entropies.grad is not None else torch.zeros_like(entropies)
            cases.append(
                {
                    "config": {"kind": kind} | options,
                    "data": name,
                    "loss": loss.item(),
                    "metrics": metrics,
                    "d_logps": flatten(groups, logps.grad),
                    "d_entropies": flatten(groups, gradient) if gradient.abs().sum() > 0 else [],
                }
            )
    path = Path(__file__).with_name("online.json")
    text = json.dumps({"max_completion_length": LIMIT, "data": data, "cases": cases}, separators=(",", ":"), allow_nan=False)
    path.write_text(text.replace('{"config"', '\n{"config"') + "\n")
    print(f"{path}: {len(cases)} cases, {path.stat().st_size} bytes")


main()
