"""What 16 bits do to log-probabilities: SmolLM2's decoder in f32, where one thing at a time is rounded, to fixed-point numbers as
policy/kernels/fixed.h has them or to bf16.

Prints for each thing by how much the log-probabilities of the pairs' answers change: of a token (root mean square, nats) and of a
whole answer (relative: mean, greatest, and how many are within 0.5%).
"""

import argparse
import json
import pathlib

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", required=True, help="a Hugging Face directory of a Llama")
parser.add_argument("--pairs", required=True, help="JSON lines with prompt, chosen and rejected conversations")
given = parser.parse_args()

folder = pathlib.Path(given.model)
config = json.loads((folder / "config.json").read_text())
tokenizer = AutoTokenizer.from_pretrained(folder)
exact_weights = load_file(folder / "model.safetensors")
heads, kv_heads, hidden = (config[key] for key in ("num_attention_heads", "num_key_value_heads", "hidden_size"))
head_dim, eps = hidden // heads, config["rms_norm_eps"]
theta = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
angles = torch.arange(8192.0)[:, None] / theta ** (torch.arange(0, head_dim, 2) / head_dim)
cos, sin = torch.cat([angles, angles], 1).cos(), torch.cat([angles, angles], 1).sin()


def ids(messages: list[dict], **more: bool) -> list[int]:
    return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **more)


def answer(prompt: list[dict], response: list[dict]) -> tuple[int, list[int]]:
    """The prompt's length, and all tokens up to the response's end of turn."""
    tokens = ids(prompt + response)
    return len(ids(prompt, add_generation_prompt=True)), tokens[: len(tokens) - tokens[::-1].index(tokenizer.eos_token_id)]


pairs = [json.loads(line) for line in pathlib.Path(given.pairs).read_text().splitlines()]
answers = [answer(pair["prompt"], pair[side]) for pair in pairs for side in ("chosen", "rejected")]
answers.sort(key=lambda answer: len(answer[1]))
batches = []
for first in range(0, len(answers), 8):
    rows = answers[first : first + 8]
    tokens = torch.zeros(len(rows), max(len(row) for _, row in rows), dtype=torch.long)
    for i, (_, row) in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
    batches.append((rows, tokens))


def nearest(x: torch.Tensor) -> torch.Tensor:
    return x.bfloat16().float()


def by_thresholds(x: torch.Tensor) -> torch.Tensor:
    """`round_at` of policy/kernels/rows.cpp."""
    low = 0xFFFFFFFF
    place = (torch.arange(x.numel()) * 0x9E3779B1) & low
    place ^= place >> 15
    threshold = ((place * 0x85EBCA77) & low) >> 16
    bits = (x.view(torch.int32).flatten().long() & low) + threshold
    return (bits >> 16).to(torch.int16).view(torch.bfloat16).view(x.shape).float()


ROW, COLUMN = 8191, 4093


def fixed(x: torch.Tensor, limit: int, axis: int = -1, block: int = 64) -> torch.Tensor:
    """Blocks along an axis share a scale, by which the largest number becomes `limit`."""
    x = x.transpose(axis, -1)
    length = x.shape[-1]
    blocks = torch.nn.functional.pad(x, (0, -length % block)).unflatten(-1, (-1, block))
    scale = blocks.abs().amax(-1, True).clamp_min(1e-30) / limit
    return ((blocks / scale).round() * scale).flatten(-2)[..., :length].transpose(axis, -1)


def row(x: torch.Tensor) -> torch.Tensor:
    return fixed(x, ROW)


def column(x: torch.Tensor) -> torch.Tensor:
    return fixed(x, COLUMN)


def decoder(tokens: torch.Tensor, weights: dict, rounded: dict) -> torch.Tensor:
    def step(name: str, x: torch.Tensor) -> torch.Tensor:
        return rounded[name](x) if name in rounded else x

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, True) + eps) * weights[f"{name}.weight"]

    def turn(x: torch.Tensor) -> torch.Tensor:
        other = torch.cat([-x[..., head_dim // 2 :], x[..., : head_dim // 2]], -1)
        return x * cos[: x.shape[2]] + other * sin[: x.shape[2]]

    rows, length = tokens.shape
    mask = torch.full((length, length), float("-inf")).triu(1)
    x = weights["model.embed_tokens.weight"][tokens]
    for layer in range(config["num_hidden_layers"]):

        def product(x: torch.Tensor, name: str) -> torch.Tensor:
            return step("sums", x @ weights[f"model.layers.{layer}.{name}.weight"].T)

        h = step("norms", norm(x, f"model.layers.{layer}.input_layernorm"))
        q, k, v = (
            product(h, f"self_attn.{name}_proj").view(rows, length, count, head_dim).transpose(1, 2)
            for name, count in (("q", heads), ("k", kv_heads), ("v", kv_heads))
        )
        q, k, v = step("q", turn(q)), step("k", turn(k)), step("v", v)
        k, v = (part.repeat_interleave(heads // kv_heads, 1) for part in (k, v))
        scores = q @ k.transpose(-1, -2) / head_dim**0.5 + mask
        shares = (scores - scores.amax(-1, True)).exp()
        attention = step("shares", shares) @ v / shares.sum(-1, True)
        attention = step("attention", attention.transpose(1, 2).reshape(rows, length, hidden))
        x = x + product(attention, "self_attn.o_proj")
        h = step("norms", norm(x, f"model.layers.{layer}.post_attention_layernorm"))
        gated = torch.nn.functional.silu(product(h, "mlp.gate_proj")) * product(h, "mlp.up_proj")
        x = x + product(step("swiglu", gated), "mlp.down_proj")
    return step("final", norm(x, "model.norm"))


@torch.no_grad()
def logps(weights: dict, rounded: dict, autocast: torch.nn.Module | None = None) -> list[torch.Tensor]:
    found = []
    for rows, tokens in batches:
        if autocast is not None:
            with torch.autocast("cpu", torch.bfloat16):
                logits = autocast(tokens).logits.float()
        else:
            states = decoder(tokens, weights, rounded)
        for i, (prompt, row) in enumerate(rows):
            if autocast is not None:
                own = logits[i, prompt - 1 : len(row) - 1]
            else:
                own = states[i, prompt - 1 : len(row) - 1] @ weights["model.embed_tokens.weight"].T
            targets = torch.tensor(row[prompt:])[:, None]
            found.append(own.log_softmax(-1).gather(1, targets)[:, 0])
    return found


exact = logps(exact_weights, {})


def report(name: str, found: list[torch.Tensor]) -> None:
    token = torch.cat([a - b for a, b in zip(found, exact)]).square().mean().sqrt()
    whole = torch.tensor([((a.sum() - b.sum()) / b.sum()).abs() for a, b in zip(found, exact)])
    near = int((whole <= 0.005).sum())
    print(f"{name}: a token {token:.4f}; an answer {whole.mean():.2%}, at most {whole.max():.2%}, {near} of {len(whole)} within 0.5%", flush=True)


def weights_by(rounding) -> dict:
    """Norms stay f32."""
    return {name: x if "norm" in name else rounding(x) for name, x in exact_weights.items()}


def all_by(how: dict, *names: str) -> dict:
    return {name: how[name] for name in names or how}


# Blocks of keys have 32, of which the values share a scale in each of their columns.
as_fixed = {
    "norms": row, "swiglu": row, "final": row, "q": row, "k": column,
    "v": lambda x: fixed(x, COLUMN, axis=-2, block=32), "shares": lambda x: fixed(x, ROW, block=32), "attention": row,
}
as_bf16 = {name: nearest for name in as_fixed}
report("fixed: weights", logps(weights_by(column), {}))
report("fixed: norms, SwiGLU's product, final states", logps(exact_weights, all_by(as_fixed, "norms", "swiglu", "final")))
report("fixed: queries, keys, values, shares", logps(exact_weights, all_by(as_fixed, "q", "k", "v", "shares")))
report("fixed: attention's outputs", logps(exact_weights, all_by(as_fixed, "attention")))
report("bf16: attention's outputs", logps(exact_weights, all_by(as_bf16, "attention")))
report("all that is fixed", logps(weights_by(column), as_fixed))
report("bf16: weights, by thresholds", logps(weights_by(by_thresholds), {}))
report("bf16: weights, to the nearest", logps(weights_by(nearest), {}))
report("bf16: keys", logps(exact_weights, all_by(as_bf16, "k")))
report("bf16: all that goes into products", logps(exact_weights, as_bf16))
report("bf16: weights by thresholds, and all that goes into products", logps(weights_by(by_thresholds), as_bf16))
report("torch.autocast", logps({}, {}, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)))
