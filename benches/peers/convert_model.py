"""Writes a GGUF file as Hugging Face directories.

usage: convert_model.py GGUF MODEL ENDLESS

MODEL gets the de-quantised weights in f32, which every side of a comparison loads. ENDLESS is the same model with an
end-of-turn token that it never gives, so that a decode benchmark decodes a fixed number of tokens.
"""

import json
import pathlib
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

UNUSED_TOKEN = "<empty_output>"

gguf, target, endless = map(pathlib.Path, sys.argv[1:])
tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
# The weights are plain floats now; transformers would write them down as quantised.
model.hf_quantizer = None
model.is_quantized = False
if hasattr(model.config, "quantization_config"):
    del model.config.quantization_config
model.save_pretrained(target)
tokenizer.save_pretrained(target)

unused = tokenizer.convert_tokens_to_ids(UNUSED_TOKEN)
assert unused not in (None, tokenizer.unk_token_id), f"the vocabulary has no {UNUSED_TOKEN}"
endless.mkdir(parents=True, exist_ok=True)
for file in target.iterdir():
    link = endless / file.name
    link.unlink(missing_ok=True)
    if file.name != "generation_config.json":
        link.symlink_to(file.resolve())
(endless / "generation_config.json").write_text(json.dumps({"eos_token_id": unused}))
