"""Reference numbers of the online algorithms with a second model, into distill.json.

Distillation: TRL 1.16's own `GKDTrainer.generalized_jsd_loss` on logits that two heads make of hidden states; its gradients
with respect to the policy's hidden states and output matrix. The sampled reverse KL is a plain transcription.

XPO and Nash-MD: the methods `_compute_losses` and `_log_statistics` of TRL 0.24's trainers, cut out of their files and called
on stubs with padded batches. `logps/*` of XPO are taken without the reference's log-probabilities, which TRL adds to them:
here they are the policy's, as in DPO.

Everything is f64; the inputs are exact in f32.

    pip install torch==2.13.0 trl==1.16.0
    pip download --no-deps trl==0.24.0 && unzip trl-0.24.0-*.whl -d trl-0.24
    python make_distill_vectors.py trl-0.24/trl
"""

import ast
import json
import random
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F

HERE = Path(__file__).resolve().parent
LIMIT = 9  # the most tokens of a response


def f32(value):
    return torch.tensor(value, dtype=torch.float32).item()


def f64(value, grad=False):
    return torch.tensor(value, dtype=torch.float64, requires_grad=grad)


# Divergences


def divergence_data():
    rng = random.Random(3)
    rows, width, vocab, teacher_width = 11, 4, 17, 6

    # Multiples of 1/64, so that logits are exact in f32, too: where they are large, their rounding alone would cost 1e-4.
    def exact(value):
        return round(value * 64) / 64

    def matrix(height, width, scale):
        return [[exact(rng.gauss(0, scale)) for _ in range(width)] for _ in range(height)]

    data = {
        "hidden": matrix(rows, width, 1.0),
        "output": matrix(vocab, width, 1.0),
        "teacher_hidden": matrix(rows, teacher_width, 1.0),
        "teacher_output": matrix(vocab, teacher_width, 1.0),
        "targets": [rng.randrange(vocab) for _ in range(rows)],
        "weights": [f32(rng.gauss(0, 1)) for _ in range(rows)],
    }
    # Extremes: a policy, a teacher and both that are nearly certain; a policy that knows nothing.
    data["hidden"][0] = [value * 20 for value in data["hidden"][0]]
    data["teacher_hidden"][1] = [value * 20 for value in data["teacher_hidden"][1]]
    data["hidden"][2] = [value * 15 for value in data["hidden"][2]]
    data["teacher_hidden"][2] = [value * 15 for value in data["teacher_hidden"][2]]
    data["hidden"][3] = [0.0] * width
    return data


def divergence_case(data, beta, temperature):
    from trl.experimental.gkd import GKDTrainer

    hidden, output = f64(data["hidden"], True), f64(data["output"], True)
    theirs = f64(data["teacher_hidden"]) @ f64(data["teacher_output"]).T
    per_entry = GKDTrainer.generalized_jsd_loss(hidden @ output.T, theirs, beta=beta, temperature=temperature, reduction="none")
    divergences = per_entry.sum(-1)
    (divergences * f64(data["weights"])).sum().backward()
    logps = theirs.log_softmax(-1).gather(1, torch.tensor(data["targets"]).unsqueeze(1)).squeeze(1)
    return {
        "beta": beta,
        "temperature": temperature,
        "divergences": divergences.tolist(),
        "teacher_logps": logps.tolist(),
        "d_hidden": hidden.grad.tolist(),
        "d_output": output.grad.tolist(),
    }


# What the objectives make of them


def groups():
    rng = random.Random(8)

    def noisy(values, scale):
        return [f32(min(value + rng.gauss(0.0, scale), -1e-4)) for value in values]

    def branch(reward, length, far=0.0):
        sampled = [f32(-rng.uniform(0.01, 6.0)) for _ in range(length)]
        return {
            "reward": f32(reward),
            "truncated": length == LIMIT,
            "sampled": sampled,
            "logps": noisy([value - far for value in sampled], 0.3),
            "reference": noisy(sampled, 0.4),
            "teacher_logps": noisy(sampled, 0.8),
            "divergences": [f32(rng.expovariate(1.0)) for _ in range(length)],
            "entropies": [f32(rng.uniform(0.0, 5.0)) for _ in range(length)],
        }

    # The policy's sample, then its rival, pair by pair.
    ragged = [
        [branch(1.0, 3), branch(0.0, 5), branch(0.25, LIMIT), branch(0.75, 1)],
        [branch(0.5, 2), branch(0.5, 7)],  # a tie
        [branch(-40.0, 4), branch(60.5, 6), branch(12.25, 1), branch(-3.0, LIMIT, far=8.0)],  # certain; far from the reference
    ]
    ragged[0][0]["logps"][1], ragged[0][0]["reference"][1] = f32(-60.25), f32(-58.0)
    ragged[0][0]["sampled"][1], ragged[0][0]["teacher_logps"][1] = f32(-60.0), f32(-90.5)
    equal = [[branch(0.5, 2), branch(0.5, 3)], [branch(0.5, 1), branch(0.5, LIMIT), branch(0.5, 4), branch(0.5, 2)]]
    return {"ragged": ragged, "equal": equal}


def pad(branches, key):
    width = max(len(branch["logps"]) for branch in branches)
    return f64([branch[key] + [0.0] * (width - len(branch[key])) for branch in branches])


def flatten(branches, matrix):
    return [value for row, branch in zip(matrix.tolist(), branches) for value in row[: len(branch["logps"])]]


def trl024(root, file, name):
    """A trainer's `_compute_losses` and `_log_statistics`."""
    text = (root / "trainer" / file).read_text()
    (trainer,) = [node for node in ast.parse(text).body if isinstance(node, ast.ClassDef) and node.name == name]
    methods = [node for node in trainer.body if getattr(node, "name", "") in ("_compute_losses", "_log_statistics")]
    namespace = {"torch": torch, "F": F}
    exec(compile(ast.Module(methods, []), file, "exec"), namespace)
    return namespace["_compute_losses"], namespace["_log_statistics"]


def stub(beta, **attributes):
    return SimpleNamespace(
        beta=beta,
        stats=defaultdict(list),
        reward_funcs=True,
        accelerator=SimpleNamespace(gather_for_metrics=lambda tensor: tensor),
        processing_class=SimpleNamespace(eos_token_id=1),
        **attributes,
    )


def eos(branches):
    """Token ids of which the last is the end of a turn where the response was not cut short."""
    width = max(len(branch["logps"]) for branch in branches)
    row = lambda branch: [0] * width if branch["truncated"] else [1] + [0] * (width - 1)
    return {"input_ids": torch.tensor([row(branch) for branch in branches])}


def sides(data):
    flat = [branch for group in data for branch in group]
    return flat, flat[0::2], flat[1::2]


def of_all(data, own, rival, own_values, rival_values):
    """Gradients in the order of the branches."""
    a, b = flatten_rows(own, own_values), flatten_rows(rival, rival_values)
    return [value for pair in zip(a, b) for row in pair for value in row]


def flatten_rows(branches, matrix):
    return [row[: len(branch["logps"])] for row, branch in zip(matrix.tolist(), branches)]


def xpo(root, data, config):
    compute_losses, log_statistics = trl024(root, "xpo_trainer.py", "XPOTrainer")
    _, own, rival = sides(data)
    trainer = stub(config.get("beta", 0.1), alpha=config.get("alpha", 1e-5), args=SimpleNamespace(loss_type=config.get("loss", "sigmoid")))
    own_logps, rival_logps = pad(own, "logps").requires_grad_(), pad(rival, "logps").requires_grad_()
    own_reference, rival_reference = pad(own, "reference"), pad(rival, "reference")
    own_scores = f64([branch["reward"] for branch in own])
    rival_scores = f64([branch["reward"] for branch in rival])
    chosen = own_scores >= rival_scores
    loss, dpo, bonus = compute_losses(trainer, own_logps, rival_logps, rival_reference, own_reference, chosen)
    d_own, d_rival = torch.autograd.grad(loss, (own_logps, rival_logps))
    log_statistics(
        trainer, eos(own), eos(rival), own_logps.detach(), rival_logps.detach(), rival_reference, own_reference, chosen,
        dpo.detach(), bonus.detach(), 0, own_scores, rival_scores,
    )
    metrics = {name: float(values[0]) for name, values in trainer.stats.items() if name not in ("alpha", "beta")}
    metrics["logps/chosen"] -= torch.where(chosen, own_reference.sum(1), rival_reference.sum(1)).mean().item()
    metrics["logps/rejected"] -= torch.where(chosen, rival_reference.sum(1), own_reference.sum(1)).mean().item()
    metrics["loss"] = loss.item()
    return loss.item(), of_all(data, own, rival, d_own, d_rival), metrics


def nash_md(root, data, config):
    compute_losses, log_statistics = trl024(root, "nash_md_trainer.py", "NashMDTrainer")
    _, own, rival = sides(data)
    trainer = stub(config.get("beta", 0.1), mixture_coef=config.get("mixture_coef", 0.5))
    logps, reference = pad(own, "logps").requires_grad_(), pad(own, "reference")
    own_scores = f64([branch["reward"] for branch in own])
    rival_scores = f64([branch["reward"] for branch in rival])
    if config.get("preference", "sigmoid") == "sigmoid":
        probability = torch.sigmoid(own_scores - rival_scores)
    else:
        probability = (1 + torch.sign(own_scores - rival_scores)) / 2
    loss, score, kl = compute_losses(trainer, logps, reference, probability)
    (gradient,) = torch.autograd.grad(loss, logps)
    log_statistics(trainer, eos(own), eos(rival), logps.detach(), reference, probability, score.detach(), kl, 0, own_scores, rival_scores)
    left_out = ("mixture_coef", "beta", "val/ref_contain_eos_token")
    metrics = {name: float(values[0]) for name, values in trainer.stats.items() if name not in left_out}
    metrics["loss"] = loss.item()
    return loss.item(), flatten(own, gradient), metrics


def distill(root, data, config):
    flat, *_ = sides(data)
    tokens = sum(len(branch["logps"]) for branch in flat)
    logps, teacher, old = pad(flat, "logps").requires_grad_(), pad(flat, "teacher_logps"), pad(flat, "sampled")
    divergences = pad(flat, "divergences").requires_grad_()
    metrics = {
        "divergence": divergences.sum().item() / tokens,
        "teacher/logps": teacher.sum().item() / tokens,
        "teacher/kl/k1": (logps - teacher).sum().item() / tokens,
    }
    if config.get("loss", "divergence") == "divergence":
        loss = divergences.sum() / tokens
    else:
        mask = f64([[1.0] * len(branch["logps"]) + [0.0] * (logps.shape[1] - len(branch["logps"])) for branch in flat])
        ratios = (logps - old).exp() * mask
        loss = -(ratios * (teacher - old)).sum() / tokens
        metrics["ratio/mean"] = ratios.sum().item() / tokens
    loss.backward()
    gradient = lambda leaf: flatten(flat, leaf.grad if leaf.grad is not None else torch.zeros_like(leaf))
    metrics["loss"] = loss.item()
    return loss.item(), gradient(logps), metrics, gradient(divergences)


def cases(root, data):
    algorithms = {"xpo": xpo, "nash_md": nash_md, "distill": distill}
    configs = [
        {"kind": "xpo"},
        {"kind": "xpo", "alpha": 0.5, "beta": 2.0},
        {"kind": "xpo", "loss": "ipo", "alpha": 0.0},
        {"kind": "xpo", "loss": "ipo", "beta": 0.3, "alpha": 0.01},
        {"kind": "nash_md"},
        {"kind": "nash_md", "beta": 0.0},
        {"kind": "nash_md", "preference": "indicator", "beta": 0.7, "mixture_coef": 0.125},
        {"kind": "distill", "teacher": "of the vectors"},
        {"kind": "distill", "teacher": "of the vectors", "loss": "sampled_reverse_kl"},
    ]
    for config in configs:
        for name in data:
            loss, d_logps, metrics, *d_divergences = algorithms[config["kind"]](root, data[name], config)
            yield {
                "config": config,
                "data": name,
                "loss": loss,
                "d_logps": d_logps,
                "d_divergences": d_divergences[0] if d_divergences else [],
                "metrics": metrics,
            }


def main():
    root = Path(sys.argv[1])
    rows, data = divergence_data(), groups()
    vectors = {
        "rows": rows,
        "divergences": [divergence_case(rows, beta, t) for t in (1.0, 0.7, 2.0) for beta in (0.0, 0.1, 0.5, 0.9, 1.0)],
        "data": data,
        "cases": list(cases(root, data)),
    }
    (HERE / "distill.json").write_text(json.dumps(vectors, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
