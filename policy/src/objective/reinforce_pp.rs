//! REINFORCE++: PPO's surrogate without a critic, its advantages normalised over the whole batch.
//!
//! Without a baseline, with k_t = log π_old(y_t) − log π_ref(y_t):
//!
//! A_t = r − β Σ_{i ≥ t} k_i,  Â_t = (A_t − mean(A)) / std(A) over all tokens of the batch,
//!
//! L = − agg_{i,t} min(ρ_t Â_t, clip(ρ_t, 1 − ε, 1 + ε_high) Â_t)
//!
//! With one (`baseline = true`), A_t = r_i − mean(r) of the group, normalised the same, and β k2 is added to the loss of
//! each token in place of the penalty. (Hu et al., "REINFORCE++", 2025.) A batch knows how far rewards spread better than a small group does, and one
//! sample a prompt is enough without the baseline.

use arriero_buffers::selection::WholeGroup;
use arriero_buffers::{Branch, Tree};
use tch::Tensor;

use super::terms::advantages::{centred, returns_to_go, whitened};
use super::terms::aggregate::{Aggregation, LossMask, aggregate};
use super::terms::clip::{self, Clip, Clipped};
use super::terms::group::{reward_deviation, reward_metrics, rewards};
use super::terms::kl::{KlEstimator, record_sampled, sampled};
use super::terms::ranges;
use super::{AlgorithmConfig, Loss, Metrics, MicroBatch, Needs, Objective, TokenStatistics, options};

options! {
    /// REINFORCE++'s options.
    pub struct ReinforcePpConfig {
        /// Subtract the group's mean reward first, and put the KL into the loss. Default false.
        pub baseline: bool = false,
        /// β: weight of the KL to the reference; 0 spares its computation. Default 0.01 (OpenRLHF's, the authors' toolkit).
        pub beta: f64 = 0.01,
        /// ε: how far below 1 a ratio still counts. Default 0.2 (PPO's).
        pub epsilon: f64 = 0.2,
        /// ε_high: how far above 1. Default: ε.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub epsilon_high: Option<f64> = None,
        /// What the sum over tokens is divided by. Default `token` (the paper's).
        pub aggregation: Aggregation = Aggregation::Token,
        /// Leave truncated responses out of the loss. Default false.
        pub mask_truncated_completions: bool = false,
        /// The constant length of `aggregation = "constant"`. Default: the generator's `max_new_tokens`.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub max_completion_length: Option<usize> = None,
    }
}

impl ReinforcePpConfig {
    fn clip(&self) -> Clip {
        Clip::new(self.epsilon, self.epsilon_high)
    }
}

impl AlgorithmConfig for ReinforcePpConfig {
    fn objective(&self) -> Box<dyn Objective> {
        Box::new(ReinforcePp { options: self.clone() })
    }

    fn resolved(&self) -> Self {
        ReinforcePpConfig { epsilon_high: Some(self.clip().high), ..self.clone() }
    }

    fn fit(&mut self, max_new_tokens: usize) {
        self.max_completion_length.get_or_insert(max_new_tokens);
    }

    fn validate(&self) -> Result<(), String> {
        clip::validate(self.epsilon, self.epsilon_high, None)?;
        ranges::at_least_zero("beta", self.beta)?;
        ranges::length("max_completion_length", self.max_completion_length)
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct ReinforcePp {
    options: ReinforcePpConfig,
}

impl Objective for ReinforcePp {
    fn needs(&self) -> Needs {
        let least = if self.options.baseline { 2 } else { 1 };
        Needs { reference: self.options.beta != 0.0, ..Needs::of(WholeGroup { least, drop_equal: false }) }
    }

    fn loss(&self, statistics: &TokenStatistics, batch: &MicroBatch<'_>) -> Loss {
        let ReinforcePpConfig { beta, baseline, aggregation, max_completion_length, .. } = self.options;
        let logps = &statistics.logps;
        let mask = self.mask();
        let advantages = batch.floats(logps, &self.advantages(batch, &mask));
        let (mut losses, clipped) = self.options.clip().token_loss(logps, &advantages, batch);
        let is_in_loss = beta != 0.0 && baseline;
        let kl = is_in_loss.then(|| KlEstimator::K2.per_token(logps, &batch.reference_logps(logps)));
        if let Some(kl) = &kl {
            losses += kl * beta;
        }
        let value = aggregate(&losses, batch, &mask, aggregation, max_completion_length.unwrap_or(1));

        let mut metrics = self.metrics(&clipped, kl.as_ref(), statistics, batch);
        metrics.add_part("loss", &value, batch);
        Loss { value, metrics }
    }
}

impl ReinforcePp {
    fn mask(&self) -> LossMask {
        LossMask { skip_truncated: self.options.mask_truncated_completions }
    }

    /// A of each token of each response, before it is normalised.
    fn raw(&self, tree: &Tree) -> Vec<Vec<f64>> {
        let rewards = rewards(tree);
        if self.options.baseline {
            let advantages = centred(&rewards).into_iter().zip(&tree.branches);
            return advantages.map(|(advantage, branch)| vec![advantage; branch.loss_tokens()]).collect();
        }
        tree.branches
            .iter()
            .map(|branch| penalised_returns(branch, self.options.beta, branch.reward.into()))
            .collect()
    }

    /// One advantage a token.
    fn advantages(&self, batch: &MicroBatch<'_>, mask: &LossMask) -> Vec<f64> {
        let all: Vec<f64> = batch
            .batch
            .iter()
            .flat_map(|tree| tree.branches.iter().zip(self.raw(tree)))
            .filter(|(branch, _)| mask.keeps(branch))
            .flat_map(|(_, advantages)| advantages)
            .collect();
        let own: Vec<f64> = batch.trees.iter().flat_map(|tree| self.raw(tree)).flatten().collect();
        whitened(&own, &all)
    }

    /// `kl` is that of each token, where it stands in the loss.
    fn metrics(
        &self,
        clipped: &Clipped,
        kl: Option<&Tensor>,
        statistics: &TokenStatistics,
        batch: &MicroBatch<'_>,
    ) -> Metrics {
        let mut metrics = Metrics::default();
        let mask = self.mask();
        clipped.token_metrics(&mut metrics, batch, &mask);
        if let Some(kl) = kl {
            mask.mean(&mut metrics, KlEstimator::K2.metric(), kl, batch);
        } else if self.options.beta != 0.0 {
            record_sampled(&mut metrics, KlEstimator::K1.metric(), batch, &mask);
        }
        mask.mean(&mut metrics, "entropy", &statistics.entropies, batch);
        reward_metrics(&mut metrics, batch, reward_deviation);
        metrics
    }
}

/// What is still to come at each token: `reward` at the end, and −β (log π_old − log π_ref) at every token.
pub(super) fn penalised_returns(branch: &Branch, beta: f64, reward: f64) -> Vec<f64> {
    if beta == 0.0 {
        return vec![reward; branch.loss_tokens()];
    }
    let mut rewards: Vec<f64> = sampled(branch).iter().map(|k1| -beta * k1).collect();
    if let Some(last) = rewards.last_mut() {
        *last += reward;
    }
    returns_to_go(&rewards)
}
