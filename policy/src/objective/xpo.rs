//! Exploratory preference optimisation: online DPO against the reference's samples, with a bonus for leaving them behind.
//!
//! With y ~ π, ỹ ~ π_ref, (y⁺, y⁻) the two in the order of their rewards and r(y) = β log(π(y | x) / π_ref(y | x)),
//!
//! L = (1 / pairs) Σ [− log σ(r(y⁺) − r(y⁻)) + α log π(ỹ | x)]
//!
//! (Xie et al., "Exploratory Preference Optimization", 2024, algorithm 1.) The second term makes what the reference would
//! have said less probable: optimism, which sends the policy where the data do not cover it yet. It differs from the first in
//! size by the length of a response, so that α is small.
//!
//! Every one of a prompt's n samples stands beside one of n samples of the reference. Where rewards are equal the policy's is
//! the chosen one, as in TRL.

use arriero_buffers::Tree;
use arriero_buffers::selection::AgainstRivals;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::dpo::{ipo, smoothed_sigmoid};
use super::pairs;
use super::{AlgorithmConfig, Loss, Metrics, MicroBatch, Needs, Objective, TokenStatistics};

/// The loss of a pair, under TRL's names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum XpoLoss {
    /// The module's.
    #[default]
    Sigmoid,
    /// (h − 1 / 2β)² with h = log(π / π_ref)(y⁺) − log(π / π_ref)(y⁻) (Azar et al., 2023).
    Ipo,
}

/// XPO's options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct XpoConfig {
    /// α: weight of the exploration bonus. Default 1e-5 (TRL's).
    pub alpha: f64,
    /// β: how strongly the policy is held to the reference; IPO's τ. Default 0.1 (TRL's).
    pub beta: f64,
    /// The loss of a pair. Default `"sigmoid"` (the paper's and TRL's).
    pub loss: XpoLoss,
}

impl Default for XpoConfig {
    fn default() -> Self {
        XpoConfig { alpha: 1e-5, beta: 0.1, loss: XpoLoss::Sigmoid }
    }
}

impl AlgorithmConfig for XpoConfig {
    fn objective(&self) -> Box<dyn Objective> {
        Box::new(Xpo { options: self.clone() })
    }

    fn resolved(&self) -> Self {
        self.clone()
    }

    fn validate(&self) -> Result<(), String> {
        pairs::at_least_zero("alpha", self.alpha)?;
        pairs::above_zero("beta", self.beta)
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Xpo {
    options: XpoConfig,
}

/// What a rival's samples are drawn from, and refused without.
pub(super) fn check_reference(experience: &[&Tree]) -> Result<(), String> {
    let lacks =
        |tree: &Tree| tree.branches.iter().any(|branch| branch.reference_logps.len() != branch.loss_tokens());
    match experience.iter().find(|tree| lacks(tree)) {
        None => Ok(()),
        Some(tree) => Err(format!(
            "prompt {} has a response without log-probabilities of the reference, against which the policy is to be \
             compared; let the reference score it first",
            tree.prompt_id
        )),
    }
}

impl Objective for Xpo {
    fn needs(&self) -> Needs {
        let rule = AgainstRivals { reference_weight: 1.0, keep_rivals: true };
        Needs { reference: true, ..Needs::of(rule) }
    }

    fn check(&self, experience: &[&Tree]) -> Result<(), String> {
        let is_odd = |tree: &&&Tree| tree.branches.is_empty() || tree.branches.len() % 2 == 1;
        if let Some(tree) = experience.iter().find(is_odd) {
            return Err(format!(
                "prompt {} has {} responses, expected pairs of one of the policy and one of the reference",
                tree.prompt_id,
                tree.branches.len()
            ));
        }
        check_reference(experience)
    }

    fn loss(&self, statistics: &TokenStatistics, batch: &MicroBatch<'_>) -> Loss {
        let XpoConfig { alpha, beta, loss } = self.options;
        let logps = &statistics.logps;
        let reference = batch.per_token(logps, |branch| branch.reference_logps.clone());
        // `[pairs, 2]`: the policy's sample, then the reference's.
        let of_pairs =
            |per_token: &Tensor| batch.sum_per_response(per_token).to_kind(Kind::Double).view([-1, 2]);
        // Token by token: the difference of two sums would lose digits.
        let ratios = of_pairs(&(logps - &reference));
        let sums = of_pairs(logps);
        let scores: Vec<f64> = batch.responses().map(|branch| branch.reward.into()).collect();
        let scores = Tensor::from_slice(&scores).view([-1, 2]).to_device(logps.device());
        let side = |tensor: &Tensor, side: i64| tensor.select(1, side);
        let margins = side(&scores, 0) - side(&scores, 1);
        let rejected = margins.ge(0.0).to_kind(Kind::Int64).unsqueeze(1);
        let chosen = rejected.logical_not().to_kind(Kind::Int64);
        let pick = |tensor: &Tensor, which: &Tensor| tensor.gather(1, which, false).squeeze_dim(1);
        let h = pick(&ratios, &chosen) - pick(&ratios, &rejected);
        let dpo = match loss {
            XpoLoss::Sigmoid => smoothed_sigmoid(&(&h * beta), 0.0),
            XpoLoss::Ipo => ipo(&h, beta),
        };
        let bonus = side(&sums, 1) * alpha;
        let pairs = (batch.totals.responses / 2).max(1) as f64;
        let value = (&dpo + &bonus).sum(Kind::Double) / pairs;

        let mut metrics = Metrics::default();
        pairs::add_share(&mut metrics, "loss", &value, batch);
        let (ratios, sums) = (ratios.detach(), sums.detach());
        let rewards = |which: &Tensor| pick(&ratios, which) * beta;
        for (name, per_pair) in [
            ("loss/dpo", dpo.detach()),
            ("loss/xpo", bonus.detach()),
            ("objective/model_scores", side(&scores, 0)),
            ("objective/ref_scores", side(&scores, 1)),
            ("objective/scores_margin", margins),
            ("objective/kl", ratios.mean_dim(1, false, Kind::Double)),
            ("objective/entropy", -sums.mean_dim(1, false, Kind::Double)),
            ("rewards/chosen", rewards(&chosen)),
            ("rewards/rejected", rewards(&rejected)),
            ("rewards/margins", h.detach() * beta),
            ("rewards/accuracies", h.detach().gt(0.0)),
            ("logps/chosen", pick(&sums, &chosen)),
            ("logps/rejected", pick(&sums, &rejected)),
        ] {
            metrics.add_entries(name, &per_pair);
        }
        for (index, branch) in batch.responses().enumerate() {
            let name = ["val/model_contain_eos_token", "val/ref_contain_eos_token"][index % 2];
            metrics.add(name, f64::from(u8::from(!branch.truncated)), 1.0);
        }
        metrics.add_entries("entropy", &statistics.entropies.detach());
        Loss { value, metrics }
    }
}
