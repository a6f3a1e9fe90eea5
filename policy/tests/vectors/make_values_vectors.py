"""Reference numbers of reward models and of PPO, into values.json, and a tiny reward model, into reward_model/.

Reward models: TRL 1.16's own `RewardTrainer.compute_loss`, called on a stub in place of a trainer; with three responses
its loss is that of all ordered pairs, a mean over pairs within a mean over prompts (a plain transcription).

PPO: the very lines of TRL 0.24's `ppo_trainer.py` that turn scores into advantages, and log-probabilities and values into
the loss, cut out of the file by their first and last words and run on padded batches. One word is changed: a response that
is shorter than its batch gets no step after its last token (`sequence_lengths_p1`), as it gets none where it is the longest.
KL in the loss and the entropy bonus, which TRL does not have, are plain transcriptions.

Everything is f64; the inputs are exact in f32. The reward model is transformers' LlamaForSequenceClassification, f32.

    pip install torch==2.13.0 transformers==5.23.0 trl==1.16.0
    pip download --no-deps trl==0.24.0 && unzip trl-0.24.0-*.whl -d trl-0.24
    python make_values_vectors.py trl-0.24/trl

    python make_values_vectors.py --check ../../../target/tmp/reward-model

loads what `cargo test -p arriero-policy --test values` wrote and compares the scores.
"""

import importlib.util
import json
import random
import sys
import textwrap
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import torch

HERE = Path(__file__).resolve().parent
TINY = HERE / "../../../tests/fixtures/tiny"
LIMIT = 9


def f32(value):
    return torch.tensor(value, dtype=torch.float32).item()


# Reward models


def reward_data():
    rng = random.Random(5)
    pairs = [[f32(rng.gauss(0, 2)), f32(rng.gauss(0, 2))] for _ in range(5)]
    # Nearly certain, certainly wrong, undecided.
    pairs += [[40.0, -45.5], [-30.25, 60.0], [0.75, 0.75]]
    ranked = [[f32(rng.gauss(0, 2)) for _ in range(3)] for _ in range(3)]
    margins = [f32(rng.uniform(0, 3)) for _ in range(len(pairs) + len(ranked))]
    strengths = [rng.choice(["marginal", "slight", "better", "significant"]) for _ in margins]
    def trees(scores):
        return [
            {"scores": row, "lengths": [rng.randint(1, 5) for _ in row], "margin": margins[i], "strength": strengths[i]}
            for i, row in enumerate(scores)
        ]
    return {"pairs": trees(pairs), "ranked": trees(ranked + pairs[:2])}


STRENGTHS = ["marginal", "slight", "better", "significant"]


def margin_of(tree, config):
    kind = config.get("margin", "none")
    step = float(STRENGTHS.index(tree["strength"]))
    return {"none": 0.0, "data": tree["margin"], "small": step / 3, "large": step}[kind]


def reward_pairs(trees, config):
    """TRL's own code."""
    from trl.trainer.reward_trainer import RewardTrainer

    scores = torch.tensor([tree["scores"] for tree in trees], dtype=torch.float64, requires_grad=True)
    outputs = SimpleNamespace(logits=torch.cat([scores[:, 0], scores[:, 1]]).unsqueeze(-1))
    model = type("Model", (), {"training": True, "__call__": lambda self, **kwargs: outputs})()
    same = lambda tensor: tensor
    trainer = SimpleNamespace(
        model=model,
        args=SimpleNamespace(center_rewards_coefficient=config.get("center_rewards_coefficient")),
        accelerator=SimpleNamespace(gather=same, gather_for_metrics=same),
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    inputs = {"attention_mask": torch.ones(1)}
    if config.get("margin", "none") != "none":
        inputs["margin"] = torch.tensor([margin_of(tree, config) for tree in trees], dtype=torch.float64)
    loss = RewardTrainer.compute_loss(trainer, model, inputs)
    (gradient,) = torch.autograd.grad(loss, scores)
    metrics = {name: float(values[0]) for name, values in trainer._metrics["train"].items() if name != "num_tokens"}
    return loss.item(), gradient.tolist(), metrics


def reward_ranked(trees, config):
    loss, gradients, accuracy, margins = 0.0, [], [], []
    rows = [torch.tensor(tree["scores"], dtype=torch.float64, requires_grad=True) for tree in trees]
    center = config.get("center_rewards_coefficient", 0.0)
    for tree, row in zip(trees, rows):
        terms, last = [], len(row) - 1
        for worse in range(1, len(row)):
            for better in range(worse):
                margin = margin_of(tree, config) if worse == last else 0.0
                difference = row[better] - row[worse]
                terms.append(-torch.nn.functional.logsigmoid(difference - margin) + center * (row[better] + row[worse]) ** 2)
                accuracy.append(float(difference > 0))
                margins.append(difference.item())
        loss = loss + torch.stack(terms).mean() / len(rows)
    loss.backward()
    everything = torch.cat([row.detach() for row in rows])
    metrics = {
        "min_reward": everything.min().item(),
        "mean_reward": everything.mean().item(),
        "max_reward": everything.max().item(),
        "accuracy": sum(accuracy) / len(accuracy),
        "margin": sum(margins) / len(margins),
    }
    return loss.item(), [row.grad.tolist() for row in rows], metrics


REWARD_CASES = [
    {},
    {"margin": "data"},
    {"margin": "small"},
    {"margin": "large", "center_rewards_coefficient": 0.5},
    {"center_rewards_coefficient": 0.01},
]

# PPO


def ppo_data():
    rng = random.Random(11)

    def noisy(values, scale, most=-1e-4):
        return [f32(min(value + rng.gauss(0.0, scale), most)) for value in values]

    def response(reward, length):
        old = [f32(-rng.uniform(0.01, 6.0)) for _ in range(length)]
        values = [f32(rng.gauss(0.0, 0.7)) for _ in range(length)]
        return {
            "reward": f32(reward),
            "truncated": length == LIMIT,
            "old": old,
            "logps": noisy(old, 0.3),
            "reference": noisy(old, 0.2),
            "entropies": [f32(rng.uniform(0.0, 5.0)) for _ in range(length)],
            "old_values": values,
            "values": noisy(values, 0.3, most=100.0),
        }

    def group(rewards, lengths):
        return [response(reward, length) for reward, length in zip(rewards, lengths)]

    ragged = [group([0.0, 1.0, 0.25], [3, 1, LIMIT]), group([1.0], [5]), group([100.5, -3.0], [2, 7])]
    plain = [group([0.0, 1.0], [3, LIMIT]), group([1.0, -0.5, 2.0], [5, 1, 4])]
    # Extremes: a token that was next to impossible, one that the policy left, values far from all others.
    first = ragged[0][0]
    first["old"][1], first["logps"][1], first["reference"][1] = f32(-60.25), f32(-59.5), f32(-58.0)
    ragged[0][2]["logps"][2] = f32(ragged[0][2]["old"][2] - 12.0)
    ragged[2][0]["values"][0], ragged[2][0]["old_values"][0] = f32(250.0), f32(-40.0)
    equal = [group([0.5, 0.5], [4, 4]), group([0.5, 0.5], [4, 4])]
    return {"plain": plain, "ragged": ragged, "equal": equal}


def lines(source, first, last):
    """The lines of a file from the first that contains `first` to the next that contains `last`."""
    rows = source.splitlines()
    begin = next(i for i, row in enumerate(rows) if first in row)
    end = next(i for i in range(begin, len(rows)) if last in rows[i])
    return textwrap.dedent("\n".join(rows[begin : end + 1]))


def ppo(trl, groups, config):
    source = (trl / "trainer/ppo_trainer.py").read_text()
    spec = importlib.util.spec_from_file_location("core", trl / "core.py")
    core = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(core)
    rows = [branch for group in groups for branch in group]
    width = max(len(row["old"]) for row in rows)

    def pad(key, fill=0.0):
        return torch.tensor([row[key] + [fill] * (width - len(row[key])) for row in rows], dtype=torch.float64)

    lengths = torch.tensor([len(row["old"]) for row in rows])
    EOS = 7
    endings = [[0 if row["truncated"] else EOS] for row in rows]
    args = SimpleNamespace(
        **{"missing_eos_penalty": None, "kl_estimator": "k1", "kl_coef": 0.05, "whiten_rewards": False, "gamma": 1.0}
        | {"lam": 0.95, "cliprange": 0.2, "cliprange_value": 0.2, "vf_coef": 0.1}
        | config
    )
    in_loss = config.get("kl") == "loss"
    if in_loss:
        args.kl_coef, in_loss = 0.0, args.kl_coef
    space = {
        "masked_mean": core.masked_mean,
        "masked_whiten": core.masked_whiten,
        "torch": torch,
        "args": args,
        "self": SimpleNamespace(args=args, processing_class=SimpleNamespace(eos_token_id=EOS)),
        "processing_class": SimpleNamespace(eos_token_id=EOS),
        "postprocessed_responses": torch.tensor(endings),
        "responses": torch.zeros(len(rows), width),
        "sequence_lengths": lengths - 1,
        "scores": torch.tensor([row["reward"] for row in rows], dtype=torch.float64),
        "logprobs": pad("old"),
        "ref_logprobs": pad("reference"),
        "values": pad("old_values"),
        "INVALID_LOGPROB": 1.0,
    }
    code = lines(source, "contain_eos_token = torch.any(", "advantages = torch.masked_fill(advantages")
    code = code.replace("sequence_lengths_p1 = sequence_lengths + 1", "sequence_lengths_p1 = sequence_lengths")
    # What newer torch takes for one index was meant as two.
    code = code.replace("rewards[[actual_start, actual_end]]", "rewards[actual_start, actual_end]")
    if not config.get("whiten_advantages", True):
        code = code.replace("advantages = masked_whiten(advantages, ~padding_mask)", "")
    exec(code, space)
    mask = ~space["padding_mask"]
    logps = pad("logps").requires_grad_()
    values = pad("values").requires_grad_()
    entropies = pad("entropies").requires_grad_()
    space |= {
        "micro_batch_inds": torch.arange(len(rows)),
        "vpred": values,
        "new_logprobs": logps.masked_fill(~mask, 1.0),
        "mb_values": space["values"],
        "mb_return": space["returns"],
        "mb_logprobs": space["logprobs"],
        "mb_advantage": space["advantages"],
    }
    exec(lines(source, "vpredclipped = torch.clamp(", "loss = pg_loss + args.vf_coef * vf_loss"), space)
    loss = space["loss"]
    count = mask.sum()
    metrics = {}
    if in_loss:
        difference = logps - pad("reference")
        kl = {"k2": difference.square() / 2, "k3": torch.exp(-difference) - 1 + difference}[config.get("kl_estimator", "k3")]
        kl = (kl * mask).sum() / count
        loss = loss + in_loss * kl
        metrics["kl/" + config.get("kl_estimator", "k3")] = kl.item()
    loss = loss - config.get("entropy_coef", 0.0) * (entropies * mask).sum() / count
    gradients = torch.autograd.grad(loss, [logps, values, entropies], allow_unused=True)

    def flat(matrix):
        return [] if matrix is None else [value for row, length in zip(matrix.tolist(), lengths.tolist()) for value in row[:length]]

    mean = lambda per_token: ((per_token * mask).sum() / count).item()
    metrics |= {
        "loss/policy_avg": space["pg_loss"].item(),
        "loss/value_avg": space["vf_loss"].item(),
        "policy/approxkl_avg": mean(0.5 * space["logprobs_diff"] ** 2),
        "policy/clipfrac_avg": mean((space["pg_losses2"] > space["pg_losses"]).double()),
        "policy/entropy_avg": mean(entropies),
        "val/clipfrac_avg": space["vf_clipfrac"].item(),
        "val/ratio": mean(space["ratio"]),
        "objective/scores": space["scores"].mean().item(),
        "objective/entropy": (-space["logprobs"] * mask).sum(1).mean().item(),
    }
    if not in_loss and args.kl_coef != 0.0:
        non_score = space["non_score_reward"].sum(1).mean()
        metrics |= {
            "objective/kl": space["kl"].sum(1).mean().item(),
            "objective/non_score_reward": non_score.item(),
            "objective/rlhf_reward": (non_score + space["scores"].mean()).item(),
        }
    return {
        "loss": loss.item(),
        "d_logps": flat(gradients[0]),
        "d_values": flat(gradients[1]),
        "d_entropies": flat(gradients[2]),
        "metrics": metrics,
    }


PPO_CASES = [
    {},
    {"whiten_rewards": True},
    {"whiten_advantages": False},
    {"gamma": 0.9, "lam": 0.5},
    {"gamma": 1.0, "lam": 1.0, "kl_coef": 0.0},
    {"kl_estimator": "k3", "kl_coef": 0.2},
    {"cliprange": 0.05, "cliprange_value": 0.01, "vf_coef": 1.0},
    {"missing_eos_penalty": 1.5},
    {"kl": "loss", "kl_coef": 0.3},
    {"kl": "loss", "kl_estimator": "k2", "kl_coef": 0.3},
    {"entropy_coef": 0.01},
]

# A tiny reward model

CONVERSATIONS = [
    [["user", "What is the weather like?"], ["assistant", "It rains."]],
    [["user", "What is the weather like?"], ["assistant", "The sun is shining and there is not a cloud in the sky."]],
    [["user", "Name a fruit."], ["assistant", "Bread."]],
    [["system", "Be short."], ["user", "Name a bird."], ["assistant", "Owl."], ["user", "Another!"], ["assistant", "Duck."]],
]


def messages(conversation):
    return [{"role": role, "content": content} for role, content in conversation]


def scores_of(directory):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    texts = [tokenizer.apply_chat_template(messages(c), tokenize=False) for c in CONVERSATIONS]
    with torch.no_grad():
        alone = [model(**tokenizer(t, return_tensors="pt", add_special_tokens=False)).logits[0, 0].item() for t in texts]
        batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False)
        together = model(**batch).logits[:, 0].tolist()
    assert max(abs(a - b) for a, b in zip(alone, together)) < 1e-5, (alone, together)
    return alone


def reward_model():
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(3)
    config = LlamaConfig.from_pretrained(TINY, num_labels=1, num_hidden_layers=1, pad_token_id=0)
    model = LlamaForSequenceClassification(config)
    torch.nn.init.normal_(model.score.weight, std=0.5)
    model.save_pretrained(HERE / "reward_model")
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    tokenizer.pad_token = "<|endoftext|>"
    tokenizer.save_pretrained(HERE / "reward_model")
    return scores_of(HERE / "reward_model"), pair_gradients(model, tokenizer)


def pair_gradients(model, tokenizer):
    """The Bradley-Terry loss of the first conversation against the second: norms of its gradients, and the head's."""
    ids = [tokenizer.apply_chat_template(messages(c), return_dict=False) for c in CONVERSATIONS[:2]]
    better, worse = [model(torch.tensor([row])).logits[0, 0] for row in ids]
    loss = -torch.nn.functional.logsigmoid(better - worse)
    model.zero_grad()
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {
        "loss": loss.item(),
        "norms": {name: gradient.norm().item() for name, gradient in gradients.items()},
        "score": gradients["score.weight"].flatten().tolist(),
    }


def main():
    if sys.argv[1] == "--check":
        directory = Path(sys.argv[2])
        expected = json.loads((directory / "scores.json").read_text())
        found = scores_of(directory)
        worst = max(abs(a - b) for a, b in zip(found, expected, strict=True))
        print(f"transformers {found}\narriero      {expected}\nlargest difference {worst:.1e}")
        assert worst < 1e-4
        return
    trl = Path(sys.argv[1])
    rewards, samples = reward_data(), ppo_data()
    reward_cases = []
    for name, trees in rewards.items():
        for config in REWARD_CASES:
            loss, gradients, metrics = (reward_pairs if name == "pairs" else reward_ranked)(trees, config)
            case = {"data": name, "config": {"kind": "reward_model"} | config, "loss": loss, "gradients": gradients}
            reward_cases.append(case | {"metrics": metrics})
    ppo_cases = [
        {"data": name, "config": {"kind": "ppo"} | config} | ppo(trl, groups, config)
        for name, groups in samples.items()
        for config in PPO_CASES
    ]
    scores, pair = reward_model()
    result = {
        "conversations": CONVERSATIONS,
        "scores": scores,
        "pair": pair,
        "reward_data": rewards,
        "reward_cases": reward_cases,
        "ppo_data": samples,
        "ppo_cases": ppo_cases,
    }
    (HERE / "values.json").write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
