"""Made pairs.jsonl: both completions are the model's own samples, so the preference means nothing.

usage: make_pairs.py MODEL > pairs.jsonl
"""

import json
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

TOPICS = "gardens ships wool volcanoes kites bees lanterns deserts violins soup winter libraries owls bicycles rice caves"
TASKS = [
    "Describe {} in a short paragraph.",
    "Name three things that are good to know about {}.",
    "Tell a friend in two sentences why {} matter to people.",
    "Say one thing about {} in a single short sentence.",
]
TOKENS, SEED = 224, 7

torch.manual_seed(SEED)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], padding_side="left")
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
for topic in TOPICS.split():
    chats = [[{"role": "user", "content": task.format(topic)}] for task in TASKS]
    inputs = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(
        **inputs, max_new_tokens=TOKENS, do_sample=True, temperature=0.8, top_p=0.95, top_k=0, num_return_sequences=2
    )
    texts = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1]:], skip_special_tokens=True)
    for chat, chosen, rejected in zip(chats, texts[::2], texts[1::2]):
        answer = lambda text: [{"role": "assistant", "content": text.strip()}]
        print(json.dumps({"prompt": chat, "chosen": answer(chosen), "rejected": answer(rejected)}), flush=True)
