"""Makes `preference.json`: losses, gradients and metrics of the preference algorithms, by TRL's own code.

    python make_preference_vectors.py        with TRL 1.16
    python make_preference_vectors.py        with TRL 0.24 (what TRL 1.16 no longer has)

TRL's methods run on a stand-in for the trainer and on given log-probabilities: the model is a function that
returns them. Everything is in f64. The inputs are multiples of 1/64, so that their sums are exact in f32 and
a test measures the objective, not the rounding of its inputs.
"""

import importlib.metadata
import json
import random
from collections import defaultdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch

OUT = Path(__file__).with_name("preference.json")
VERSION = importlib.metadata.version("trl")
torch.set_default_dtype(torch.float64)


# The batches: trees of branches.


def quantised(number):
    return min(-1, round(number * 64)) / 64


def branch(logps, ratios, reward, is_format=None):
    """A response whose log-ratios of policy and reference are `ratios`, up to the reference's bound of 0."""
    logps = [quantised(logp) for logp in logps]
    return {
        "logps": logps,
        "reference_logps": [quantised(logp - ratio) for logp, ratio in zip(logps, ratios)],
        "is_format": is_format or [False] * len(logps),
        "reward": reward,
    }


def batches():
    draw = random.Random(4)

    def response(length, reward, mean=0.0):
        logps = [-draw.expovariate(1.0) for _ in range(length)]
        ratios = [draw.gauss(mean, 0.5) for _ in range(length)]
        is_format = [draw.random() < 0.2 for _ in range(length - 1)] + [length > 1]
        return branch(logps, ratios, reward, is_format)

    lengths = [(3, 5), (1, 2), (7, 4), (6, 6), (2, 9)]
    ragged = [[response(chosen, 1.0), response(rejected, 0.0)] for chosen, rejected in lengths]
    same = response(4, 1.0)
    extreme = [
        [branch([-0.5] * 4, [25.0] * 4, 1.0), branch([-30.0] * 5, [-20.0] * 5, 0.0)],
        [branch([-40.0] * 3, [-37.0] * 3, 1.0), branch([-0.25] * 2, [50.0] * 2, 0.0)],
        [same, {**same, "reward": 0.0}],
        [branch([-0.015625], [0.5], 1.0), branch([-100.0] * 2, [-1.0] * 2, 0.0)],
    ]
    # A group gives one response or two; the third of these batches has undesirable ones only.
    unpaired = [[response(5, 1.0, 0.6), response(3, 0.0, 0.3)], [response(4, 1.0, 0.4)], [response(6, 0.25, 0.2)]]
    clamped = [[response(2, 0.75, -0.6), response(5, 0.0, -0.5)], [response(3, 0.5, -0.2)]]
    found = {
        "ragged": ragged,
        "extreme": extreme,
        "unpaired": unpaired,
        "clamped": clamped,
        "one_class": [[response(4, 0.0)], [response(2, 0.0)]],
    }
    # KTO: log π/π_ref of each prompt with another's response; the batch that is clamped has a negative mean.
    draw = random.Random(5)
    for name in ["extreme", "unpaired", "clamped", "one_class"]:
        for one in [one for tree in found[name] for one in tree]:
            one["mismatched_ratio"] = round(64 * draw.gauss(-2.0 if name == "clamped" else 1.5, 1.0)) / 64
    return found


class Padded:
    """Responses as TRL holds them: right-padded rows with one position of a prompt before them."""

    def __init__(self, responses, mask_format_tokens=False):
        width = max(len(response["logps"]) for response in responses)

        def rows(key, fill):
            return torch.tensor([[*response[key], *[fill] * (width - len(response[key]))] for response in responses])

        self.responses = responses
        self.logps = rows("logps", 0.0).requires_grad_(True)
        self.reference = rows("reference_logps", 0.0)
        self.mask = rows("logps", 1.0) < 0.5
        self.mask &= rows("reference_logps", 1.0) < 0.5
        if mask_format_tokens:
            self.mask &= ~rows("is_format", False).bool()
        self.completion_mask = torch.cat((torch.zeros(len(responses), 1), self.mask.double()), dim=1).long()
        self.ids = torch.zeros_like(self.completion_mask)
        self.rewards = torch.tensor([response["reward"] for response in responses])

    def model(self, **_):
        """What TRL's models return: numbers a token, 0 where a token is no target."""
        log_probs = self.logps * self.mask
        detached = self.logps.detach()
        return SimpleNamespace(
            log_probs=log_probs,
            entropy=-detached / 2,
            is_top1=detached > -0.7,
            mean_logits=torch.zeros_like(detached),
        )

    def sums(self):
        return (self.logps * self.mask).sum(1), (self.reference * self.mask).sum(1)

    def gradients(self, loss):
        self.logps.grad = None
        loss.backward()
        return [
            [float(f"{number:.9g}") for number in row[: len(response["logps"])].tolist()]
            for row, response in zip(self.logps.grad, self.responses)
        ]


def accelerator():
    same = lambda tensor: tensor  # noqa: E731
    return SimpleNamespace(device="cpu", gather=same, gather_for_metrics=same, use_distributed=False)


def trainer(**attributes):
    return SimpleNamespace(
        accelerator=accelerator(),
        model=SimpleNamespace(training=True),
        aux_loss_enabled=False,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
        **attributes,
    )


def step(padded, order, loss, metrics):
    """One step of a case; `order` puts TRL's rows (all chosen, then all rejected) back into trees."""
    gradients = padded.gradients(loss)
    kept = {
        name: float(f"{value:.9g}")
        for name, value in metrics.items()
        if not name.startswith("logits/") and name != "num_tokens"
    }
    return {"loss": float(f"{loss.item():.9g}"), "gradients": [gradients[row] for row in order], "metrics": kept}


def pairs(trees, **options):
    rows = [tree[0] for tree in trees] + [tree[1] for tree in trees]
    order = [row for pair in zip(range(len(trees)), range(len(trees), 2 * len(trees))) for row in pair]
    return Padded(rows, **options), order


# TRL 1.16.


def dpo_case(config):
    from trl import DPOTrainer

    config = dict(config)
    losses = config.get("loss", "sigmoid")
    losses = {losses: 1.0} if isinstance(losses, str) else dict(losses)
    if config.get("nll_coefficient"):
        losses["sft"] = config["nll_coefficient"]
    masked = config.get("mask_format_tokens", False)
    ours = trainer(
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=list(losses),
        loss_weights=list(losses.values()),
        beta=config.get("beta", 0.1),
        label_smoothing=config.get("label_smoothing", 1e-3 if "exo_pair" in losses else 0.0),
        use_weighting=False,
        args=SimpleNamespace(discopop_tau=config.get("discopop_tau", 0.05)),
    )

    def run(trees):
        padded, order = pairs(trees, mask_format_tokens=masked)
        if any("aot" in loss for loss in losses):
            logps, reference = padded.sums()
            for values in (logps - reference).chunk(2):
                assert len(set(values.tolist())) == len(trees), "a tie: which gradient is whose is not defined"
        reference = padded.sums()[1].chunk(2)
        inputs = {
            "input_ids": padded.ids,
            "attention_mask": torch.ones_like(padded.ids),
            "completion_mask": padded.completion_mask,
            "ref_chosen_logps": reference[0],
            "ref_rejected_logps": reference[1],
        }
        ours._metrics["train"].clear()
        loss = DPOTrainer._compute_loss(ours, padded.model, inputs, False)
        metrics = {name: values[-1] for name, values in ours._metrics["train"].items()}
        if masked:
            # Arriero masks the preference loss alone: these are over all tokens.
            for name in ["logps/chosen", "logps/rejected", "entropy", "mean_token_accuracy"]:
                del metrics[name]
        return step(padded, order, loss, metrics)

    return run


def means(padded):
    return (padded.logps * padded.mask).sum(1) / padded.mask.sum(1)


def chosen_nll(padded):
    rows = len(padded.responses) // 2
    return -padded.logps[:rows][padded.mask[:rows]].mean()


def cpo_case(config):
    from trl.experimental.cpo import CPOTrainer

    loss = config.get("loss", "sigmoid")
    ours = trainer(
        loss_type="simpo" if loss == "alphapo" else loss,
        beta=config.get("beta", 0.1),
        cpo_alpha=config.get("nll_coefficient", 0.0 if loss == "alphapo" else 1.0),
        simpo_gamma=config.get("simpo_gamma", 0.5),
        alpha=config.get("alpha", 0.0),
        label_smoothing=config.get("label_smoothing", 0.0),
    )
    ours.cpo_loss = partial(CPOTrainer.cpo_loss, ours)

    def run(trees):
        padded, order = pairs(trees)
        logps = means(padded) if ours.loss_type in ["ipo", "simpo"] else padded.sums()[0]
        chosen, rejected = logps.chunk(2)
        nothing = torch.zeros(1)
        ours.concatenated_forward = lambda *_: (chosen, rejected, nothing, nothing, chosen_nll(padded))
        return step(padded, order, *CPOTrainer.get_batch_loss_metrics(ours, None, None))

    return run


def simpo_case(config):
    config = dict(config)
    gamma = config.pop("gamma", 0.5)
    return cpo_case({"beta": 2.0, "nll_coefficient": 0.0, **config, "loss": "simpo", "simpo_gamma": gamma})


def orpo_case(config):
    from trl.experimental.orpo import ORPOTrainer

    ours = trainer(beta=config.get("beta", 0.1))
    ours.odds_ratio_loss = partial(ORPOTrainer.odds_ratio_loss, ours)

    def run(trees):
        padded, order = pairs(trees)
        chosen, rejected = means(padded).chunk(2)
        nothing = torch.zeros(1)
        # TRL's NLL is over the prompt, too; Arriero's over the response, under another name.
        ours.concatenated_forward = lambda *_: (chosen, rejected, nothing, nothing, chosen_nll(padded))
        # TRL's method casts to f32.
        with patch.object(torch.Tensor, "float", torch.Tensor.double):
            loss, metrics = ORPOTrainer.get_batch_loss_metrics(ours, None, None)
        metrics["nll_loss/response"] = metrics.pop("nll_loss")
        return step(padded, order, loss, metrics)

    return run


def kto_case(config):
    from trl import KTOTrainer

    loss = config.get("loss", "kto")
    batch_estimate = config.get("kl_estimate") == "batch"
    ours = trainer(
        precompute_ref_logps=True,
        loss_type=loss,
        calculate_KL=loss == "kto",
        beta=config.get("beta", 0.1),
        desirable_weight=config.get("desirable_weight", 1.0),
        undesirable_weight=config.get("undesirable_weight", 1.0),
    )

    def run(trees):
        padded = Padded([response for tree in trees for response in tree])
        logps, reference = padded.sums()
        # What TRL finds by another forward pass: here given, in the order of the responses.
        ratios = torch.tensor([response["mismatched_ratio"] for tree in trees for response in tree])
        if batch_estimate:
            ratios = (logps - reference).detach()
        ours._compute_kl_logps = lambda *_: reference + ratios if ours.calculate_KL else None
        inputs = {
            "input_ids": padded.ids,
            "attention_mask": torch.ones_like(padded.ids),
            "completion_mask": padded.completion_mask,
            "label": padded.rewards >= config.get("desirable_reward", 0.5),
            "ref_logps": reference,
            "ref_KL_logps": reference,
        }
        ours._metrics["train"].clear()
        value = KTOTrainer._compute_loss(ours, padded.model, inputs, False)
        metrics = {name: values[-1] for name, values in ours._metrics["train"].items()}
        if batch_estimate:
            metrics["kl/batch"] = metrics.pop("kl")
        return step(padded, range(len(padded.responses)), value, metrics)

    return run


# TRL 0.24.


def old_dpo_case(config):
    from trl.trainer.dpo_config import FDivergenceType
    from trl.trainer.dpo_trainer import DPOTrainer
    from trl.trainer.utils import RunningMoments

    losses = config.get("loss", "sigmoid")
    losses = {losses: 1.0} if isinstance(losses, str) else dict(losses)
    ours = trainer(
        reference_free=False,
        f_divergence_type=FDivergenceType.REVERSE_KL,
        beta=config.get("beta", 0.1),
        label_smoothing=config.get("label_smoothing", 0.0),
        loss_type=list(losses),
        running=RunningMoments(accelerator()),
    )

    def run(trees):
        padded, order = pairs(trees)
        logps, reference = padded.sums()
        logps, reference = logps.chunk(2), reference.chunk(2)
        loss = 0.0
        for name, weight in losses.items():
            per_pair, chosen, rejected = DPOTrainer.dpo_loss(ours, *logps, *reference, loss_type=name)
            loss = loss + per_pair.mean() * weight
        metrics = {
            "rewards/chosen": chosen.mean().item(),
            "rewards/rejected": rejected.mean().item(),
            "rewards/margins": (chosen - rejected).mean().item(),
        }
        if "bco_pair" in losses:
            metrics["delta"] = ours.running.mean
        return step(padded, order, loss, metrics)

    return run


CASES = {
    "1.16": [
        *[("dpo", {"loss": loss}) for loss in ["sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "sppo_hard"]],
        *[("dpo", {"loss": loss}) for loss in ["aot", "aot_unpaired", "apo_zero", "apo_down", "discopop"]],
        ("dpo", {"loss": "sigmoid_norm", "beta": 2.0}),
        ("dpo", {"loss": "robust", "label_smoothing": 0.1}),
        ("dpo", {"loss": "aot", "label_smoothing": 0.2, "beta": 0.5}),
        ("dpo", {"loss": "ipo", "mask_format_tokens": True}),
        ("dpo", {"loss": "aot", "mask_format_tokens": True}),
        ("dpo", {"loss": {"sigmoid": 0.8, "apo_zero": 0.25, "hinge": 0.5}, "nll_coefficient": 0.5, "beta": 0.3}),
        ("simpo", {}),
        ("simpo", {"gamma": 1.5, "beta": 2.5, "label_smoothing": 0.1, "nll_coefficient": 0.2}),
        ("orpo", {}),
        ("cpo", {}),
        ("cpo", {"loss": "hinge"}),
        ("cpo", {"loss": "ipo"}),
        ("cpo", {"loss": "simpo", "label_smoothing": 0.1}),
        ("cpo", {"loss": "alphapo", "alpha": 0.125, "beta": 2.5}),
        ("kto", {}),
        ("kto", {"kl_estimate": "batch"}),
        ("kto", {"kl_estimate": "batch", "desirable_weight": 1.5, "undesirable_weight": 0.75, "beta": 0.5}),
        ("kto", {"desirable_weight": 1.5, "undesirable_weight": 0.75, "beta": 0.5}),
        ("kto", {"loss": "apo_zero_unpaired"}),
    ],
    "0.24": [
        ("dpo", {"loss": "sigmoid", "label_smoothing": 0.1}),
        ("dpo", {"loss": "bco_pair"}),
        ("dpo", {"loss": {"sigmoid": 0.8, "bco_pair": 0.2}, "beta": 0.05}),
    ],
}
MAKERS = {
    "1.16": {"dpo": dpo_case, "simpo": simpo_case, "orpo": orpo_case, "cpo": cpo_case, "kto": kto_case},
    "0.24": {"dpo": old_dpo_case},
}


def main():
    release = ".".join(VERSION.split(".")[:2])
    data = batches()
    cases = json.loads(OUT.read_text())["cases"] if OUT.exists() else []
    cases = [case for case in cases if case["trl"] != VERSION]
    for kind, config in CASES[release]:
        run = MAKERS[release][kind](config)
        names = ["unpaired", "extreme", "clamped", "one_class"] if kind == "kto" else ["ragged", "extreme", "ragged"]
        if "bco_pair" not in str(config) and kind != "kto":
            names = names[:2]
        steps = [{"batch": name, **run(data[name])} for name in names]
        cases.append({"algorithm": {"kind": kind, **config}, "trl": VERSION, "steps": steps})
    lines = ",\n".join(json.dumps(case) for case in cases)
    OUT.write_text(f'{{"batches": {json.dumps(data)},\n"cases": [\n{lines}\n]}}\n')
    print(f"{len(cases)} cases, {OUT.stat().st_size} bytes, TRL {VERSION}")


if __name__ == "__main__":
    main()
