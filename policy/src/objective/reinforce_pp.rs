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
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::advantages::{centred, deviation, returns_to_go, whitened};
use super::aggregate::{Aggregation, LossMask, aggregate};
use super::clip::Clip;
use super::group::{add_loss, reward_metrics};
use super::kl::{KlEstimator, record_sampled, sampled};
use super::{AlgorithmConfig, Loss, Metrics, MicroBatch, Needs, Objective, TokenStatistics};

/// REINFORCE++'s options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ReinforcePpConfig {
    /// Subtract the group's mean reward first, and put the KL into the loss. Default false.
    pub baseline: bool,
    /// β: weight of the KL to the reference; 0 spares its computation. Default 0.01 (OpenRLHF's, the authors' toolkit).
    pub beta: f64,
    /// ε: how far below 1 a ratio still counts. Default 0.2 (PPO's).
    pub epsilon: f64,
    /// ε_high: how far above 1. Default: ε.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epsilon_high: Option<f64>,
    /// What the sum over tokens is divided by. Default `token` (the paper's).
    pub aggregation: Aggregation,
    /// Leave truncated responses out of the loss. Default false.
    pub mask_truncated_completions: bool,
    /// The constant length of `aggregation = "constant"`. Default: the generator's `max_new_tokens`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_completion_length: Option<usize>,
}

impl Default for ReinforcePpConfig {
    fn default() -> Self {
        ReinforcePpConfig {
            baseline: false,
            beta: 0.01,
            epsilon: 0.2,
            epsilon_high: None,
            aggregation: Aggregation::Token,
            mask_truncated_completions: false,
            max_completion_length: None,
        }
    }
}

impl AlgorithmConfig for ReinforcePpConfig {
    fn objective(&self) -> Box<dyn Objective> {
        Box::new(ReinforcePp { options: self.clone() })
    }

    fn resolved(&self) -> Self {
        ReinforcePpConfig { epsilon_high: Some(self.epsilon_high.unwrap_or(self.epsilon)), ..self.clone() }
    }

    fn fit(&mut self, max_new_tokens: usize) {
        self.max_completion_length.get_or_insert(max_new_tokens);
    }

    fn validate(&self) -> Result<(), String> {
        super::clip::validate(self.epsilon, self.epsilon_high, None)?;
        super::kl::validate_beta(self.beta)?;
        super::aggregate::validate_length(self.max_completion_length)
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct ReinforcePp {
    options: ReinforcePpConfig,
}

impl ReinforcePp {
    /// A of each token of each response, before it is normalised.
    fn raw(&self, tree: &Tree) -> Vec<Vec<f64>> {
        let rewards: Vec<f64> = tree.branches.iter().map(|branch| branch.reward.into()).collect();
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

impl Objective for ReinforcePp {
    fn needs(&self) -> Needs {
        let least = if self.options.baseline { 2 } else { 1 };
        Needs { reference: self.options.beta != 0.0, ..Needs::of(WholeGroup { least, drop_equal: false }) }
    }

    fn loss(&self, statistics: &TokenStatistics, batch: &MicroBatch<'_>) -> Loss {
        let options = &self.options;
        let logps = &statistics.logps;
        let mut metrics = Metrics::default();
        let mask = LossMask { skip_truncated: options.mask_truncated_completions };
        let clip =
            Clip { low: options.epsilon, high: options.epsilon_high.unwrap_or(options.epsilon), dual: None };
        let advantages = batch.floats(logps, &self.advantages(batch, &mask));
        let mut losses = clip.token_loss(logps, &advantages, batch, &mask, &mut metrics);
        if options.beta != 0.0 && options.baseline {
            let reference = batch.per_token(logps, |branch| branch.reference_logps.clone());
            let kl = KlEstimator::K2.per_token(logps, &reference);
            mask.mean(&mut metrics, KlEstimator::K2.metric(), &kl, batch);
            losses += kl * options.beta;
        } else if options.beta != 0.0 {
            record_sampled(&mut metrics, KlEstimator::K1.metric(), batch, &mask);
        }
        let length = options.max_completion_length.unwrap_or(1);
        let value = aggregate(&losses, batch, &mask, options.aggregation, length);

        add_loss(&mut metrics, batch, "loss", value.double_value(&[]));
        mask.mean(&mut metrics, "entropy", &statistics.entropies, batch);
        reward_metrics(&mut metrics, batch, |tree| {
            deviation(&tree.branches.iter().map(|branch| branch.reward.into()).collect::<Vec<_>>())
        });
        Loss { value, metrics }
    }
}
