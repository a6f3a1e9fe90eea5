//! ReMax: REINFORCE with the reward of the greedy answer as the baseline.
//!
//! With ŷ the greedy answer and k_t = log π_old(y_t) − log π_ref(y_t),
//!
//! A_t = r(y) − r(ŷ) − β Σ_{i ≥ t} k_i,  L = − agg_{i,t} min(ρ_t A_t, clip(ρ_t, 1 − ε, 1 + ε_high) A_t)
//!
//! (Li et al., "ReMax", 2023, algorithm 1, which has log π in place of ρ: the gradient is the same while samples are
//! fresh, and beyond that ρ corrects for what changed.) One sample a prompt is enough, but every prompt is answered once
//! more, greedily; that answer is scored, and not trained on.

use arriero_buffers::Tree;
use arriero_buffers::selection::GreedyBaseline;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::advantages::deviation;
use super::aggregate::{Aggregation, LossMask, aggregate};
use super::clip::Clip;
use super::group::{add_loss, reward_metrics};
use super::kl::{KlEstimator, record_sampled};
use super::reinforce_pp::penalised_returns;
use super::{AlgorithmConfig, Loss, Metrics, MicroBatch, Needs, Objective, TokenStatistics};

/// ReMax's options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RemaxConfig {
    /// β: weight of the KL to the reference within the reward; 0 spares its computation. Default 0.05 (as RLOO's; the paper
    /// tunes it by task).
    pub beta: f64,
    /// ε: how far below 1 a ratio still counts. Default 0.2 (PPO's).
    pub epsilon: f64,
    /// ε_high: how far above 1. Default: ε.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epsilon_high: Option<f64>,
    /// What the sum over tokens is divided by. Default `constant`, which is the paper's sum over a sequence times a constant.
    pub aggregation: Aggregation,
    /// The constant length of `aggregation = "constant"`. Default: the generator's `max_new_tokens`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_completion_length: Option<usize>,
}

impl Default for RemaxConfig {
    fn default() -> Self {
        RemaxConfig {
            beta: 0.05,
            epsilon: 0.2,
            epsilon_high: None,
            aggregation: Aggregation::Constant,
            max_completion_length: None,
        }
    }
}

impl AlgorithmConfig for RemaxConfig {
    fn objective(&self) -> Box<dyn Objective> {
        Box::new(Remax { options: self.clone() })
    }

    fn resolved(&self) -> Self {
        RemaxConfig { epsilon_high: Some(self.epsilon_high.unwrap_or(self.epsilon)), ..self.clone() }
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
pub struct Remax {
    options: RemaxConfig,
}

/// What the greedy answer earned.
fn baseline(tree: &Tree) -> f64 {
    tree.greedy_reward.map_or(0.0, f64::from)
}

impl Objective for Remax {
    fn needs(&self) -> Needs {
        Needs { reference: self.options.beta != 0.0, ..Needs::of(GreedyBaseline) }
    }

    fn loss(&self, statistics: &TokenStatistics, batch: &MicroBatch<'_>) -> Loss {
        let options = &self.options;
        let logps = &statistics.logps;
        let mut metrics = Metrics::default();
        let mask = LossMask { skip_truncated: false };
        let of_tree = |tree: &&Tree| -> Vec<f64> {
            let advantage = |reward: f32| f64::from(reward) - baseline(tree);
            let branches = tree.branches.iter();
            branches
                .flat_map(|branch| penalised_returns(branch, options.beta, advantage(branch.reward)))
                .collect()
        };
        let advantages: Vec<f64> = batch.trees.iter().flat_map(of_tree).collect();
        let clip =
            Clip { low: options.epsilon, high: options.epsilon_high.unwrap_or(options.epsilon), dual: None };
        let advantages = batch.floats(logps, &advantages);
        let losses = clip.token_loss(logps, &advantages, batch, &mask, &mut metrics);
        let length = options.max_completion_length.unwrap_or(1);
        let value = aggregate(&losses, batch, &mask, options.aggregation, length);

        add_loss(&mut metrics, batch, "loss", value.double_value(&[]));
        mask.mean(&mut metrics, "entropy", &statistics.entropies, batch);
        if options.beta != 0.0 {
            record_sampled(&mut metrics, KlEstimator::K1.metric(), batch, &mask);
        }
        for tree in batch.trees {
            metrics.add("reward/greedy", baseline(tree), 1.0);
        }
        reward_metrics(&mut metrics, batch, |tree| {
            deviation(&tree.branches.iter().map(|branch| branch.reward.into()).collect::<Vec<_>>())
        });
        Loss { value, metrics }
    }
}
