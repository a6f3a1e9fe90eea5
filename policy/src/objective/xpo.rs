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
use super::terms::ranges;
use super::{AlgorithmConfig, Loss, Metrics, MicroBatch, Needs, Objective, TokenStatistics, options};

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

options! {
    /// XPO's options.
    pub struct XpoConfig {
        /// α: weight of the exploration bonus. Default 1e-5 (TRL's).
        pub alpha: f64 = 1e-5,
        /// β: how strongly the policy is held to the reference; IPO's τ. Default 0.1 (TRL's).
        pub beta: f64 = 0.1,
        /// The loss of a pair. Default `"sigmoid"` (the paper's and TRL's).
        pub loss: XpoLoss = XpoLoss::Sigmoid,
    }
}

impl AlgorithmConfig for XpoConfig {
    fn objective(&self) -> Box<dyn Objective> {
        Box::new(Xpo { options: self.clone() })
    }

    fn validate(&self) -> Result<(), String> {
        ranges::at_least_zero("alpha", self.alpha)?;
        ranges::above_zero("beta", self.beta)
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Xpo {
    options: XpoConfig,
}

/// A micro-batch as pairs of a sample of the policy and one of the reference: f64 `[pairs, 2]` each, in this order.
struct Pairs {
    /// log(π / π_ref) of the responses.
    ratios: Tensor,
    /// log π of the responses.
    logps: Tensor,
    /// Their rewards.
    scores: Tensor,
    /// Which of the two has the higher reward: `[pairs, 1]`.
    chosen: Tensor,
    /// And which the lower.
    rejected: Tensor,
}

/// The policy's sample of each pair.
const POLICY: i64 = 0;

/// The reference's.
const REFERENCE: i64 = 1;

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
        let pairs = Pairs::of(&statistics.logps, batch);
        let h = pick(&pairs.ratios, &pairs.chosen) - pick(&pairs.ratios, &pairs.rejected);
        let dpo = match loss {
            XpoLoss::Sigmoid => smoothed_sigmoid(&(&h * beta), 0.0),
            XpoLoss::Ipo => ipo(&h, beta),
        };
        let bonus = pairs.logps.select(1, REFERENCE) * alpha;
        let value = (&dpo + &bonus).sum(Kind::Double) / (batch.totals.responses / 2).max(1) as f64;

        let mut metrics = self.metrics(&pairs, &h.detach(), statistics, batch);
        metrics.add_part("loss", &value, batch);
        metrics.add_entries("loss/dpo", &dpo.detach());
        metrics.add_entries("loss/xpo", &bonus.detach());
        Loss { value, metrics }
    }
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

impl Pairs {
    fn of(logps: &Tensor, batch: &MicroBatch<'_>) -> Self {
        let of_pairs =
            |per_token: &Tensor| batch.sum_per_response(per_token).to_kind(Kind::Double).view([-1, 2]);
        // Token by token: the difference of two sums would lose digits.
        let ratios = of_pairs(&(logps - batch.reference_logps(logps)));
        let scores: Vec<f64> = batch.responses().map(|branch| branch.reward.into()).collect();
        let scores = Tensor::from_slice(&scores).view([-1, 2]).to_device(logps.device());
        let margins = scores.select(1, POLICY) - scores.select(1, REFERENCE);
        let rejected = margins.ge(0.0).to_kind(Kind::Int64).unsqueeze(1);
        let chosen = rejected.logical_not().to_kind(Kind::Int64);
        Pairs { ratios, logps: of_pairs(logps), scores, chosen, rejected }
    }
}

/// One of the two entries of each pair: `[pairs]`.
fn pick(of_pairs: &Tensor, which: &Tensor) -> Tensor {
    of_pairs.gather(1, which, false).squeeze_dim(1)
}

impl Xpo {
    /// `h` is the difference of the chosen and the rejected ratio of each pair.
    fn metrics(
        &self,
        pairs: &Pairs,
        h: &Tensor,
        statistics: &TokenStatistics,
        batch: &MicroBatch<'_>,
    ) -> Metrics {
        let beta = self.options.beta;
        let Pairs { scores, chosen, rejected, .. } = pairs;
        let (ratios, logps) = (pairs.ratios.detach(), pairs.logps.detach());
        let (policy_scores, reference_scores) = (scores.select(1, POLICY), scores.select(1, REFERENCE));
        let mut metrics = Metrics::default();
        for (name, per_pair) in [
            ("objective/scores_margin", &policy_scores - &reference_scores),
            ("objective/model_scores", policy_scores),
            ("objective/ref_scores", reference_scores),
            ("objective/kl", ratios.mean_dim(1, false, Kind::Double)),
            ("objective/entropy", -logps.mean_dim(1, false, Kind::Double)),
            ("rewards/chosen", pick(&ratios, chosen) * beta),
            ("rewards/rejected", pick(&ratios, rejected) * beta),
            ("rewards/margins", h * beta),
            ("rewards/accuracies", h.gt(0.0)),
            ("logps/chosen", pick(&logps, chosen)),
            ("logps/rejected", pick(&logps, rejected)),
        ] {
            metrics.add_entries(name, &per_pair);
        }
        for (index, branch) in batch.responses().enumerate() {
            let name = ["val/model_contain_eos_token", "val/ref_contain_eos_token"][index % 2];
            metrics.add(name, f64::from(u8::from(!branch.truncated)), 1.0);
        }
        metrics.add_entries("entropy", &statistics.entropies.detach());
        metrics
    }
}
