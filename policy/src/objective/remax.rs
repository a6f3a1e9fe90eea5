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

use super::reinforce_pp::penalised_returns;
use super::terms::aggregate::{Aggregation, LossMask, aggregate};
use super::terms::clip::{self, Clip, Clipped};
use super::terms::group::{reward_deviation, reward_metrics};
use super::terms::kl::{KlEstimator, record_sampled};
use super::terms::ranges;
use super::{AlgorithmConfig, Loss, Metrics, MicroBatch, Needs, Objective, TokenStatistics, options};

options! {
    /// ReMax's options.
    pub struct RemaxConfig {
        /// β: weight of the KL to the reference within the reward; 0 spares its computation. Default 0.05 (as RLOO's; the paper
        /// tunes it by task).
        pub beta: f64 = 0.05,
        /// ε: how far below 1 a ratio still counts. Default 0.2 (PPO's).
        pub epsilon: f64 = 0.2,
        /// ε_high: how far above 1. Default: ε.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub epsilon_high: Option<f64> = None,
        /// What the sum over tokens is divided by. Default `constant`, which is the paper's sum over a sequence times a constant.
        pub aggregation: Aggregation = Aggregation::Constant,
        /// The constant length of `aggregation = "constant"`. Default: the generator's `max_new_tokens`.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub max_completion_length: Option<usize> = None,
    }
}

impl RemaxConfig {
    fn clip(&self) -> Clip {
        Clip::new(self.epsilon, self.epsilon_high)
    }
}

impl AlgorithmConfig for RemaxConfig {
    fn objective(&self) -> Box<dyn Objective> {
        Box::new(Remax { options: self.clone() })
    }

    fn resolved(&self) -> Self {
        RemaxConfig { epsilon_high: Some(self.clip().high), ..self.clone() }
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
pub struct Remax {
    options: RemaxConfig,
}

impl Objective for Remax {
    fn needs(&self) -> Needs {
        Needs { reference: self.options.beta != 0.0, ..Needs::of(GreedyBaseline) }
    }

    fn loss(&self, statistics: &TokenStatistics, batch: &MicroBatch<'_>) -> Loss {
        let RemaxConfig { aggregation, max_completion_length, .. } = self.options;
        let logps = &statistics.logps;
        let advantages = batch.floats(logps, &self.advantages(batch));
        let (losses, clipped) = self.options.clip().token_loss(logps, &advantages, batch);
        let value =
            aggregate(&losses, batch, &LossMask::ALL, aggregation, max_completion_length.unwrap_or(1));

        let mut metrics = self.metrics(&clipped, statistics, batch);
        metrics.add_part("loss", &value, batch);
        Loss { value, metrics }
    }
}

/// What the greedy answer earned.
fn baseline(tree: &Tree) -> f64 {
    tree.greedy_reward.map_or(0.0, f64::from)
}

impl Remax {
    /// One advantage a token.
    fn advantages(&self, batch: &MicroBatch<'_>) -> Vec<f64> {
        let of_tree = |tree: &&Tree| -> Vec<f64> {
            let advantage = |reward: f32| f64::from(reward) - baseline(tree);
            let branches = tree.branches.iter();
            branches
                .flat_map(|branch| penalised_returns(branch, self.options.beta, advantage(branch.reward)))
                .collect()
        };
        batch.trees.iter().flat_map(of_tree).collect()
    }

    fn metrics(&self, clipped: &Clipped, statistics: &TokenStatistics, batch: &MicroBatch<'_>) -> Metrics {
        let mut metrics = Metrics::default();
        clipped.token_metrics(&mut metrics, batch, &LossMask::ALL);
        LossMask::ALL.mean(&mut metrics, "entropy", &statistics.entropies, batch);
        if self.options.beta != 0.0 {
            record_sampled(&mut metrics, KlEstimator::K1.metric(), batch, &LossMask::ALL);
        }
        for tree in batch.trees {
            metrics.add("reward/greedy", baseline(tree), 1.0);
        }
        reward_metrics(&mut metrics, batch, reward_deviation);
        metrics
    }
}
