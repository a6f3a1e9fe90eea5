"""Random checkpoints of every family that Arriero computes, and what transformers makes of them: writes families/
and families.json beside this file.

    pip install torch==2.13.0 transformers==5.23.0 tokenizers==0.23.3 safetensors==0.8.0 gguf==0.19.0
    python make_families.py

Weights are random, norms and biases too; stored in bf16, computed in f32. `--check FOLDER` writes nothing:
it loads the checkpoints of the same names in FOLDER (written by Arriero) and compares their logits.
"""

import argparse
import json
import shutil
from pathlib import Path

import gguf
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen3Config

HERE = Path(__file__).resolve().parent
VOCABULARY = 64
SPECIAL = ["<start>", "<pad>", "<end>"]
END = 2
PROMPT, BRANCHES, NEW = 14, [11, 7], 24
COMMON = dict(
    vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=128, rms_norm_eps=1e-5, initializer_range=0.3,
    bos_token_id=0, eos_token_id=END,
)
LLAMA3 = dict(rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=16)
FAMILIES = {
    "llama2": LlamaConfig(**COMMON | dict(num_key_value_heads=4)),
    # Sequences are longer than the 16 positions before scaling.
    "llama3.1": LlamaConfig(**COMMON, tie_word_embeddings=True, rope_parameters=LLAMA3),
    "llama-biased-linear": LlamaConfig(
        **COMMON, attention_bias=True, mlp_bias=True,
        rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=2.0),
    ),
    "mistral": MistralConfig(**COMMON, head_dim=16, sliding_window=6),
    # The first layer is whole, the second has the window.
    "qwen2": Qwen2Config(
        **COMMON, tie_word_embeddings=True, use_sliding_window=True, sliding_window=6, max_window_layers=1,
    ),
    "qwen3": Qwen3Config(
        **COMMON | dict(num_hidden_layers=3), head_dim=16, use_sliding_window=True, sliding_window=9,
        layer_types=["full_attention", "sliding_attention", "full_attention"],
    ),
}
# llama.cpp's names of the architectures; its files know no window.
GGUF = {"llama-biased-linear": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3}


def numbers(tensor):
    return [float(f"{x:.8g}") for x in tensor.double().flatten().tolist()]


def make(folder, config, seed):
    """A checkpoint whose norms and biases are random: fresh ones are ones and zeros, and a reader that forgot
    them would pass."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("norm.weight", ".bias")):
                weight += 0.3 * torch.randn_like(weight)
    shutil.rmtree(folder, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(folder)
    words = {word: i for i, word in enumerate(SPECIAL + [f"w{i}" for i in range(len(SPECIAL), VOCABULARY)])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<start>", pad_token="<pad>", eos_token="<end>"
    ).save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)


def write_gguf(path, model, architecture):
    """What llama.cpp's converter makes of a checkpoint: its names, and a Llama's queries and keys with the halves of
    each head interleaved. Matrices in bf16, the rest in f32."""
    config = model.config
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if config.rope_parameters["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_parameters["factor"])
    if getattr(config, "head_dim", None):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    letters = [chr(ord("!") + i) for i in range(VOCABULARY - len(SPECIAL) - 1)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(SPECIAL + letters + [letters[0] + letters[1]])
    writer.add_token_types([gguf.TokenType.CONTROL] * len(SPECIAL) + [gguf.TokenType.NORMAL] * (len(letters) + 1))
    writer.add_token_merges([f"{letters[0]} {letters[1]}"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(END)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        if heads and architecture == gguf.MODEL_ARCH.LLAMA:
            weight = weight.unflatten(0, [heads, 2, -1]).transpose(1, 2).flatten(0, 2)
        values, name = weight.float().numpy(), names.get_name(name, (".weight", ".bias"))
        if weight.dim() == 2:
            kind = gguf.GGMLQuantizationType.BF16
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


@torch.no_grad()
def vectors(model, seed):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda count: torch.randint(len(SPECIAL), VOCABULARY, [count], generator=generator).tolist()
    prompt, branches = draw(PROMPT), [draw(count) for count in BRANCHES]
    logits = lambda ids: model(torch.tensor([ids])).logits[0]
    sequences = [logits(prompt + branch) for branch in branches]
    greedy = []
    for _ in range(NEW):  # the whole sequence each time: no cache whose own faults would be taken over
        last = logits(prompt + greedy)[-1]
        best = last.topk(2)
        greedy.append(best.indices[0].item())
        margin = (best.values[0] - best.values[1]).item()
        if greedy[-1] == END or margin < 1e-2:
            return None
    after = logits(prompt + greedy)[PROMPT - 1:-1].log_softmax(-1)
    return {
        "prompt": prompt,
        "branches": branches,
        # Every position, but only every seventh column.
        "columns": list(range(0, VOCABULARY, 7)),
        "logits": [numbers(rows[:, ::7]) for rows in sequences],
        "greedy": greedy,
        "greedy_logps": numbers(after.gather(1, torch.tensor(greedy)[:, None])),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", type=Path, help="a folder of checkpoints to compare instead")
    check = parser.parse_args().check
    torch.set_num_threads(1)
    result = {}
    for number, (name, config) in enumerate(FAMILIES.items()):
        folder = HERE / "families" / name
        if check:
            ours, theirs = load(check / name), load(folder)
            ids = torch.arange(len(SPECIAL), VOCABULARY)[None]
            with torch.no_grad():
                difference = (ours(ids).logits - theirs(ids).logits).abs().max().item()
            print(f"{name}: {type(ours).__name__}, largest difference of a logit {difference}")
            assert type(ours) is type(theirs) and difference == 0
            continue
        make(folder, config, number)
        model = load(folder)
        if name in GGUF:
            write_gguf(folder.with_suffix(".gguf"), model, GGUF[name])
        found = (vectors(model, seed) for seed in range(1000))
        result[name] = next(vector for vector in found if vector)
    if not check:
        lines = [f"{json.dumps(key)}:{json.dumps(value, separators=(',', ':'))}" for key, value in result.items()]
        (HERE / "families.json").write_text("{" + ",\n".join(lines) + "}\n", encoding="ascii")


if __name__ == "__main__":
    main()
