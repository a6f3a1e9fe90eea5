"""A PEFT adapter of every linear layer of tests/fixtures/tiny, and the logits of both together.

--check DIR lets PEFT load an adapter that Arriero has written (DIR, with Arriero's logits in DIR/logits.json).
"""

import argparse
import json
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent
TINY = HERE / "../../../tests/fixtures/tiny"
TOKENS = [5, 17, 200, 31, 8, 8, 319, 64, 3, 150]
COLUMNS = [0, 1, 2, 7, 31, 63, 100, 177, 250, 319]


def base():
    return AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)


def logits(model):
    with torch.no_grad():
        return model.eval()(torch.tensor([TOKENS])).logits[0][:, COLUMNS].tolist()


def make():
    torch.manual_seed(11)
    # An odd rank; B is random too, so that the adapter matters.
    config = LoraConfig(
        r=3, lora_alpha=5, target_modules="all-linear", init_lora_weights=False, use_rslora=True, task_type="CAUSAL_LM"
    )
    model = get_peft_model(base(), config)
    model.peft_config["default"].base_model_name_or_path = "tiny"
    model.save_pretrained(HERE / "lora")
    (HERE / "lora" / "README.md").unlink()
    config_path = HERE / "lora" / "adapter_config.json"
    config = json.loads(config_path.read_text())
    config["target_modules"].sort()
    config_path.write_text(json.dumps(config, indent=2) + "\n")
    rows = {"tokens": TOKENS, "columns": COLUMNS, "base": logits(base()), "adapted": logits(model)}
    (HERE / "lora.json").write_text(json.dumps(rows) + "\n")


def check(folder):
    found = torch.tensor(json.loads((folder / "logits.json").read_text()))
    expected = torch.tensor(logits(PeftModel.from_pretrained(base(), folder)))
    difference = (found - expected).abs().max().item()
    effect = (expected - torch.tensor(logits(base()))).abs().max().item()
    print(f"largest difference of a logit {difference:.1e}; the adapter moves one by {effect:.1e}")
    assert difference <= 1e-5 < effect


parser = argparse.ArgumentParser()
parser.add_argument("--check", type=Path)
arguments = parser.parse_args()
check(arguments.check) if arguments.check else make()
