"""transformers.generate: 16 prompts, 8 samples each, natural stops, at most 128 tokens, bf16."""

import time

import torch
from common import arguments, distinct_prompts, report
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS, SAMPLES, TOKENS = 16, 8, 128

parser = arguments(__doc__)
parser.add_argument("--batch", type=int, default=32, help="sequences in one call, a multiple of 8")
given = parser.parse_args()
tokenizer = AutoTokenizer.from_pretrained(given.model, padding_side="left")
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.bfloat16).to(given.device)
chats = distinct_prompts(given.pairs)[:PROMPTS]


def sample(chats, new_tokens):
    """Tokens that were sampled, end of turn included and padding not."""
    inputs = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    ).to(given.device)
    # The model's own distribution, as on our side: neither temperature nor truncation.
    output = model.generate(
        **inputs, max_new_tokens=new_tokens, do_sample=True, temperature=1.0, top_p=1.0, top_k=0,
        num_return_sequences=SAMPLES,
    )
    new = output[:, inputs["input_ids"].shape[1]:]
    ended = (new == tokenizer.eos_token_id).int().cumsum(1)
    # The first end of turn counts; what follows it is padding, which may be the same token.
    return int((ended == 0).sum() + (ended.max(1).values > 0).sum())


prompts_at_once = max(given.batch // SAMPLES, 1)
sample(chats[:prompts_at_once], 2)
seconds, tokens = [], 0
for _ in range(given.steps):
    start = time.perf_counter()
    for first in range(0, len(chats), prompts_at_once):
        tokens += sample(chats[first:first + prompts_at_once], TOKENS)
    seconds.append(time.perf_counter() - start)
report(seconds, tokens, batch=given.batch)
