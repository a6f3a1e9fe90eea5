"""Reference logits and greedy continuations of SmolLM2-135M-Instruct: writes smollm2.json beside this file.

    pip install torch==2.13.0 transformers==5.13.0 gguf==0.19.0
    python make_smollm2.py --model DIR

DIR is a Hugging Face directory in f32; README.md says how to make it from the GGUF file.
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

CHATS = [
    "What is the capital of France? Answer in one sentence.",
    "Hi!",
    "Write a Python function that reverses a string.",
    "What does this code print?\n\nfn main() {\n    let v: Vec<u32> = (1..=3).map(|x| x * x).collect();\n"
    "    println!(\"{v:?}\");\n}",
    "What is 17 + 25? Show your steps.",
    "Solve for x: 3x - 7 = 11",
    "Wie heißt die Hauptstadt von Österreich?",
    "¿Puedes contarme un chiste corto?",
    "日本の首都はどこですか？",
    "List five fruits that are red.",
    "Give me three tips for sleeping better, as a numbered list.",
    "Summarise in one line: The cat sat on the mat. It was raining, so the cat stayed there all day long.",
    "Translate into French: \"Good morning, my friend 😀\"",
    "Write a haiku about autumn rain.",
]
PLAIN = [
    "Once upon a time, in a small village by the sea, there lived",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
]
COLUMNS = [0, 1, 2] + [3 + i * 49148 // 60 for i in range(61)]
LAST = 4
CONTINUATION = 32


def short(numbers):
    """Rounded to six significant digits."""
    return [float(f"{number:.6g}") for number in numbers]


@torch.inference_mode()
def vector(model, tokenizer, text, chat):
    rendered = text
    if chat:
        messages = [{"role": "user", "content": text}]
        rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    tokens = tokenizer(rendered, add_special_tokens=False).input_ids
    out = model(torch.tensor([tokens]), use_cache=True)
    logits = out.logits[0]

    best, second = logits.topk(2).values.T
    argmax_margin = (best - second).min().item()
    greedy, margins, row = [], [], logits[-1]
    while True:
        best, second = row.topk(2).values
        margins.append((best - second).item())
        greedy.append(row.argmax().item())
        if len(greedy) == CONTINUATION:
            break
        out = model(torch.tensor([greedy[-1:]]), past_key_values=out.past_key_values, use_cache=True)
        row = out.logits[0, -1]

    return {
        "text": text,
        "rendered": rendered,
        "tokens": tokens,
        "logits": [short(row.tolist()) for row in logits[-LAST:, COLUMNS]],
        "logsumexp": short(logits[-LAST:].logsumexp(-1).tolist()),
        "argmax": logits.argmax(-1).tolist(),
        "argmax_margin": short([argmax_margin])[0],
        "greedy": greedy,
        "greedy_margin": short([min(margins)])[0],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="Hugging Face directory of SmolLM2-135M-Instruct")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(
        arguments.model, dtype=torch.float32, attn_implementation="eager"
    ).eval()

    prompts = [(text, True) for text in CHATS] + [(text, False) for text in PLAIN]
    lines = []
    for text, chat in prompts:
        case = vector(model, tokenizer, text, chat)
        print(f"{case['argmax_margin']:.5f} {case['greedy_margin']:.5f} {text!r} -> {tokenizer.decode(case['greedy'])!r}")
        assert min(case["argmax_margin"], case["greedy_margin"]) > 1e-3, "too near a tie to compare"
        lines.append(json.dumps(case, separators=(",", ":"), ensure_ascii=True))
    columns = json.dumps(COLUMNS, separators=(",", ":"))
    text = f'{{"columns":{columns},\n"prompts":[\n' + ",\n".join(lines) + "\n]}\n"
    Path(__file__).with_name("smollm2.json").write_text(text, encoding="ascii")


if __name__ == "__main__":
    main()
