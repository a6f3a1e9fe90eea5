//! Nash-MD: the policy learns to be preferred to a mixture of itself and the reference.
//!
//! With y ~ π, y′ ~ π′ where π′ ∝ π^(1 − c) π_ref^c is drawn from token by token, P(y ≻ y′) how probable it is that y is
//! preferred, and k_t = log π(y_t) − log π_ref(y_t), which carries no gradient here,
//!
//! L = (1 / responses) Σ [β Σ_t k_t log π(y_t) − (P(y ≻ y′) − 1/2) Σ_t log π(y_t)]
//!
//! (Munos et al., "Nash Learning from Human Feedback", 2023, §7, with the gradient's form that TRL's NashMDTrainer has.) Its
//! fixed point is the Nash equilibrium of the game in which each side is rewarded for being preferred, held to the reference by
//! β: a policy that no other beats, which needs no reward that explains all preferences.
//!
//! Every one of a prompt's n samples stands against one of n samples of the mixture; these are scored, and not trained on.

use arriero_buffers::selection::AgainstRivals;
use arriero_buffers::{Branch, Tree};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::terms::ranges;
use super::xpo::check_reference;
use super::{AlgorithmConfig, Loss, Metrics, MicroBatch, Needs, Objective, TokenStatistics, options};

/// From two rewards to the probability that the first response is preferred.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Preference {
    /// σ(r − r′): that of Bradley and Terry, for the scores of a reward model.
    #[default]
    Sigmoid,
    /// 1, 1/2 or 0 as r is above, equal to or below r′: for rewards by rule, which have no natural scale.
    Indicator,
}

impl Preference {
    fn probability(self, reward: f64, rival: f64) -> f64 {
        match self {
            Preference::Sigmoid => 1.0 / (1.0 + (rival - reward).exp()),
            Preference::Indicator if reward > rival => 1.0,
            Preference::Indicator if reward < rival => 0.0,
            Preference::Indicator => 0.5,
        }
    }
}

options! {
    /// Nash-MD's options.
    pub struct NashMdConfig {
        /// β: weight of the KL to the reference. Default 0.1 (TRL's).
        pub beta: f64 = 0.1,
        /// c: the reference's weight in the mixture, from 0 (the policy itself) to 1 (the reference). Default 0.5 (TRL's).
        pub mixture_coef: f64 = 0.5,
        /// How rewards become a preference. Default `"sigmoid"` (TRL's).
        pub preference: Preference = Preference::Sigmoid,
    }
}

impl AlgorithmConfig for NashMdConfig {
    fn objective(&self) -> Box<dyn Objective> {
        Box::new(NashMd { options: self.clone() })
    }

    fn validate(&self) -> Result<(), String> {
        ranges::at_least_zero("beta", self.beta)?;
        let is_share = (0.0..=1.0).contains(&self.mixture_coef);
        ranges::within("mixture_coef", self.mixture_coef, is_share, "from 0 to 1")
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct NashMd {
    options: NashMdConfig,
}

impl Objective for NashMd {
    fn needs(&self) -> Needs {
        let reference_weight = self.options.mixture_coef as f32;
        let rule = AgainstRivals { reference_weight, keep_rivals: false };
        Needs { reference: true, ..Needs::of(rule) }
    }

    fn check(&self, experience: &[&Tree]) -> Result<(), String> {
        let is_alone = |tree: &&&Tree| tree.branches.len() != tree.rival_rewards.len();
        if let Some(tree) = experience.iter().find(is_alone) {
            return Err(format!(
                "prompt {} has {} responses and {} rewards of rivals, expected one for each: samples of the mixture \
                 of policy and reference",
                tree.prompt_id,
                tree.branches.len(),
                tree.rival_rewards.len()
            ));
        }
        check_reference(experience)
    }

    fn loss(&self, statistics: &TokenStatistics, batch: &MicroBatch<'_>) -> Loss {
        let beta = self.options.beta;
        let logps = &statistics.logps;
        let ratios = (logps - batch.reference_logps(logps)).detach();
        let sums = sum(logps, batch);
        let probabilities = self.probabilities(batch, logps);
        let score = (&probabilities - 0.5) * &sums;
        let responses = batch.totals.responses.max(1) as f64;
        let value = (sum(&(&ratios * logps), batch) * beta - &score).sum(Kind::Double) / responses;

        let mut metrics = metrics(&sums.detach(), &sum(&ratios, batch), statistics, batch);
        metrics.add_part("loss", &value, batch);
        metrics.add_entries("loss/score", &score.detach());
        metrics.add_entries("rewards/probabilities", &probabilities);
        Loss { value, metrics }
    }
}

impl NashMd {
    /// P of each response against its rival: f64 `[responses]`.
    fn probabilities(&self, batch: &MicroBatch<'_>, like: &Tensor) -> Tensor {
        let preference = self.options.preference;
        let probabilities: Vec<f64> =
            duels(batch).map(|(branch, rival)| preference.probability(branch.reward.into(), rival)).collect();
        Tensor::from_slice(&probabilities).to_device(like.device())
    }
}

/// The responses with the rewards of their rivals.
fn duels<'a>(batch: &MicroBatch<'a>) -> impl Iterator<Item = (&'a Branch, f64)> {
    batch.trees.iter().flat_map(|&tree| {
        tree.branches.iter().zip(&tree.rival_rewards).map(|(branch, &rival)| (branch, f64::from(rival)))
    })
}

/// Sums over each response: f64 `[responses]`.
fn sum(per_token: &Tensor, batch: &MicroBatch<'_>) -> Tensor {
    batch.sum_per_response(per_token).to_kind(Kind::Double)
}

/// `logps` and `kl` are sums over each response.
fn metrics(logps: &Tensor, kl: &Tensor, statistics: &TokenStatistics, batch: &MicroBatch<'_>) -> Metrics {
    let mut metrics = Metrics::default();
    for (name, per_response) in [
        ("loss/kl", kl),
        ("objective/entropy", &-logps),
        ("rewards/margins", kl),
        ("rewards/accuracies", &kl.gt(0.0)),
        ("logps/chosen", logps),
        ("logps/rejected", &sum(&batch.reference_logps(&statistics.logps), batch)),
    ] {
        metrics.add_entries(name, per_response);
    }
    for (branch, rival) in duels(batch) {
        metrics.add("rewards/chosen", branch.reward.into(), 1.0);
        metrics.add("rewards/rejected", rival, 1.0);
        metrics.add("val/model_contain_eos_token", f64::from(u8::from(!branch.truncated)), 1.0);
    }
    metrics.add_entries("entropy", &statistics.entropies.detach());
    metrics
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preferences_equal_hand_computed_numbers() {
        // ln 3: three to one.
        assert!((Preference::Sigmoid.probability(3.0f64.ln(), 0.0) - 0.75).abs() < 1e-12);
        assert_eq!(Preference::Sigmoid.probability(0.0, 1e6), 0.0);
        for (reward, rival, expected) in [(1.0, 0.0, 1.0), (0.0, 1.0, 0.0), (0.25, 0.25, 0.5)] {
            assert_eq!(Preference::Indicator.probability(reward, rival), expected);
        }
    }
}
