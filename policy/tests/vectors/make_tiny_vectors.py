"""Logits, losses, gradients and AdamW steps on the tiny checkpoints: writes tiny.json beside this file.

    pip install torch==2.13.0 transformers==5.13.0 safetensors==0.8.0
    python make_tiny_vectors.py

Logits and reference log-probabilities are transformers' in f32 (the latter of one right-padded batch). Losses and
gradients are plain autograd's in f64, a sequence at a time: transformers computes norms, softmax and rotations in
f32 whatever the model's type is, so the decoder is written out here, and checked against transformers' logits.
"""

import argparse
import json
import math
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

HERE = Path(__file__).resolve().parent
VOCABULARY, HEADS, KV_HEADS, HEAD_DIM, LAYERS, EPS, THETA = 320, 4, 2, 8, 2, 1e-5, 10000.0
COLUMNS = [0, 1, 2] + [3 + i * 316 // 12 for i in range(13)]
FORMAT = [0, 1, 2]
END = 2
LENGTHS = [{"prompt": 6, "chosen": 12, "rejected": 3}, {"prompt": 11, "chosen": 4, "rejected": 9}]
BETA, NLL_SCALE = 0.1, 0.2
ADAMW = {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01}
STEPS = 3


def numbers(tensor):
    return [float(f"{number:.10g}") for number in tensor.detach().reshape(-1).tolist()]


def number(tensor):
    return numbers(tensor)[0]


def norm(x, weight):
    return weight * x / (x.pow(2).mean(-1, keepdim=True) + EPS).sqrt()


def rotate(x):
    """Rotary positions of [heads, positions, HEAD_DIM], halves paired as Hugging Face's checkpoints have them."""
    frequencies = THETA ** (-torch.arange(0, HEAD_DIM, 2, dtype=x.dtype) / HEAD_DIM)
    angles = torch.arange(x.shape[1], dtype=x.dtype)[:, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def forward(weights, ids):
    """Logits [positions, VOCABULARY] of one sequence."""
    positions = len(ids)
    future = torch.ones(positions, positions, dtype=torch.bool).triu(1)
    x = weights["model.embed_tokens.weight"][torch.tensor(ids)]
    for layer in range(LAYERS):
        get = lambda name: weights[f"model.layers.{layer}.{name}.weight"]
        heads = lambda h, name, count: (h @ get(f"self_attn.{name}").T).view(positions, count, HEAD_DIM).transpose(0, 1)
        h = norm(x, get("input_layernorm"))
        q = rotate(heads(h, "q_proj", HEADS))
        k = rotate(heads(h, "k_proj", KV_HEADS)).repeat_interleave(HEADS // KV_HEADS, 0)
        v = heads(h, "v_proj", KV_HEADS).repeat_interleave(HEADS // KV_HEADS, 0)
        scores = (q @ k.transpose(1, 2) / math.sqrt(HEAD_DIM)).masked_fill(future, -math.inf)
        mixed = (scores.softmax(-1) @ v).transpose(0, 1).reshape(positions, HEADS * HEAD_DIM)
        x = x + mixed @ get("self_attn.o_proj").T
        h = norm(x, get("post_attention_layernorm"))
        x = x + (F.silu(h @ get("mlp.gate_proj").T) * (h @ get("mlp.up_proj").T)) @ get("mlp.down_proj").T
    return norm(x, weights["model.norm.weight"]) @ weights.get("lm_head.weight", weights["model.embed_tokens.weight"]).T


def load(folder):
    weights = {}
    for file in sorted(folder.glob("*.safetensors")):
        weights |= load_file(file)
    return {name: weights[name].double().requires_grad_() for name in sorted(weights)}


def response_logps(logits, prompt, response):
    """Log-probability of each response token; the prompt's last position predicts the first."""
    rows = logits[len(prompt) - 1 : len(prompt) + len(response) - 1].log_softmax(-1)
    return rows.gather(-1, torch.tensor(response)[:, None])[:, 0]


@torch.no_grad()
def reference_logps(model, sequences):
    """Of all (prompt, response) as one right-padded batch."""
    width = max(len(prompt + response) for prompt, response in sequences)
    padding = lambda sequence: width - len(sequence)
    ids = torch.tensor([p + r + [END] * padding(p + r) for p, r in sequences])
    mask = torch.tensor([[1] * len(p + r) + [0] * padding(p + r) for p, r in sequences])
    logits = model(ids, attention_mask=mask).logits
    return [numbers(response_logps(row, p, r)) for row, (p, r) in zip(logits, sequences)]


def sft_loss(weights, pairs):
    logps = [response_logps(forward(weights, p["prompt"] + p["chosen"]), p["prompt"], p["chosen"]) for p in pairs]
    return -torch.cat(logps).mean()


def dpo(weights, pairs):
    """Llama 3's DPO: format tokens masked out of the rewards, and a scaled NLL over all chosen tokens added."""
    logps, rewards = {}, {}
    for side in ["chosen", "rejected"]:
        logps[side] = [response_logps(forward(weights, p["prompt"] + p[side]), p["prompt"], p[side]) for p in pairs]
        rewards[side] = []
        for pair, found in zip(pairs, logps[side]):
            mask = torch.tensor([float(token not in FORMAT) for token in pair[side]], dtype=torch.float64)
            reference = torch.tensor(pair[f"reference_logps_{side}"], dtype=torch.float64)
            rewards[side].append(BETA * (mask * (found - reference)).sum())
        rewards[side] = torch.stack(rewards[side])
    margins = rewards["chosen"] - rewards["rejected"]
    preference = -F.logsigmoid(margins).mean()
    nll = -torch.cat(logps["chosen"]).mean()
    metrics = {
        "rewards/chosen": number(rewards["chosen"].mean()),
        "rewards/rejected": number(rewards["rejected"].mean()),
        "rewards/margins": number(margins.mean()),
        "rewards/accuracies": number((margins > 0).double().mean()),
        "logps/chosen": number(torch.stack([found.sum() for found in logps["chosen"]]).mean()),
        "logps/rejected": number(torch.stack([found.sum() for found in logps["rejected"]]).mean()),
    }
    parts = {"preference_loss": number(preference), "nll": number(nll)}
    per_pair = {f"rewards_{side}": numbers(rewards[side]) for side in rewards}
    return preference + NLL_SCALE * nll, parts | per_pair | {"metrics": metrics}


def entry_indices(weights, seen):
    """Eight places of each tensor, as indices into its row-major elements; half the embedding's in rows of `seen`."""
    places = {}
    for name, weight in weights.items():
        count = weight.numel()
        places[name] = [(i * count // 8 + i) % count for i in range(8)]
    width = weights["model.embed_tokens.weight"].shape[1]
    rows = [0, END, 160, VOCABULARY - 1] + seen[:4]
    places["model.embed_tokens.weight"] = [row * width + 3 * i for i, row in enumerate(rows)]
    return places


def summary(tensors, places):
    return {
        "norms": {name: number(tensor.norm()) for name, tensor in tensors.items()},
        "entries": {name: numbers(tensor.flatten()[places[name]]) for name, tensor in tensors.items()},
    }


def gradients(loss, weights):
    return dict(zip(weights, torch.autograd.grad(loss, list(weights.values()))))


def adamw(folder, pairs, places):
    """Every tensor decays, norms and embedding too; nothing is clipped."""
    weights = load(folder)
    optimizer = torch.optim.AdamW(weights.values(), **ADAMW)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = sft_loss(weights, pairs)
        loss.backward()
        optimizer.step()
        losses.append(number(loss))
    after = number(sft_loss(weights, pairs))
    return ADAMW | {"steps": STEPS, "losses": losses, "loss_after": after} | summary(weights, places)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = HERE.parents[2] / "tests/fixtures"
    parser.add_argument("--fixtures", type=Path, default=default, help="the folder of tiny/ and tiny-untied/")
    fixtures = parser.parse_args().fixtures
    torch.set_num_threads(1)
    draw = random.Random(20)
    tokens = lambda count: draw.choices(range(3, VOCABULARY), k=count)

    ids = tokens(40)
    pairs = [
        {part: tokens(count) if part == "prompt" else tokens(count - 1) + [END] for part, count in lengths.items()}
        for lengths in LENGTHS
    ]
    result = {"columns": COLUMNS, "tokens": ids, "models": {}}
    for name in ["tiny", "tiny-untied"]:
        model = LlamaForCausalLM.from_pretrained(fixtures / name, dtype=torch.float32).eval()
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0]
            difference = (logits - forward(load(fixtures / name), ids)).abs().max().item()
        print(f"{name}: transformers in f32 and this decoder in f64 differ by {difference:.1e} at most")
        assert difference < 1e-4
        result["models"][name] = {
            "logits": [numbers(row) for row in logits[:, COLUMNS]],
            "logsumexp": numbers(logits.logsumexp(-1)),
        }

    sides = ["chosen", "rejected"]
    found = iter(reference_logps(model, [(pair["prompt"], pair[side]) for pair in pairs for side in sides]))
    untied = load(fixtures / "tiny-untied")
    for pair in pairs:
        for side in sides:
            logps = pair[f"reference_logps_{side}"] = next(found)
            alone = response_logps(forward(untied, pair["prompt"] + pair[side]), pair["prompt"], pair[side])
            assert torch.allclose(alone, torch.tensor(logps, dtype=torch.float64), atol=1e-4)

    weights = load(fixtures / "tiny")
    places = entry_indices(weights, pairs[0]["prompt"])
    sft = sft_loss(weights, pairs)
    loss, details = dpo(weights, pairs)
    result |= {
        "pairs": pairs,
        "entry_indices": places,
        "sft": {"loss": number(sft), "gradient": summary(gradients(sft, weights), places)},
        "dpo": {"beta": BETA, "nll_scale": NLL_SCALE, "format_tokens": FORMAT, "loss": number(loss)}
        | details
        | {"gradient": summary(gradients(loss, weights), places)},
        "adamw": adamw(fixtures / "tiny", pairs, places),
    }
    lines = [f"{json.dumps(key)}:{json.dumps(value, separators=(',', ':'))}" for key, value in result.items()]
    (HERE / "tiny.json").write_text("{" + ",\n".join(lines) + "}\n", encoding="ascii")
    print("sft", result["sft"]["loss"], "dpo", result["dpo"]["loss"], "adamw", result["adamw"]["losses"])


if __name__ == "__main__":
    main()
