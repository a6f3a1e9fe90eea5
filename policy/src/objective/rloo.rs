//! REINFORCE leave-one-out: the others of a group are a response's baseline.
//!
//! With R_i = r_i − β Σ_t [log π_old(y_t) − log π_ref(y_t)] and ρ_i = π(y_i | x) / π_old(y_i | x) of the whole sequence,
//!
//! A_i = R_i − (1 / (G − 1)) Σ_{j ≠ i} R_j,  L = − (1 / N) Σ_i min(ρ_i A_i, clip(ρ_i, 1 − ε, 1 + ε_high) A_i)
//!
//! (Ahmadian et al., "Back to Basics", 2024; clipped as TRL does, which matters only where samples are used for more than
//! one step.) The KL is part of the reward, as k1 under the policy that sampled.

use arriero_buffers::selection::WholeGroup;
use arriero_buffers::{Branch, Tree};
use tch::Kind;

use super::terms::advantages::{deviation, leave_one_out, mean, scaled};
use super::terms::aggregate::LossMask;
use super::terms::clip::{self, Clip, Clipped};
use super::terms::group::reward_metrics;
use super::terms::kl::{record_sampled, sampled};
use super::terms::ranges;
use super::{AlgorithmConfig, Loss, Metrics, MicroBatch, Needs, Objective, TokenStatistics, options};

options! {
    /// RLOO's options, under the names of TRL 1.16, whose defaults they have.
    pub struct RlooConfig {
        /// β: weight of the KL to the reference within the reward; 0 spares its computation. Default 0.05 (TRL's).
        pub beta: f64 = 0.05,
        /// ε: how far below 1 a ratio still counts. Default 0.2 (TRL's).
        pub epsilon: f64 = 0.2,
        /// ε_high: how far above 1. Default: ε (TRL's).
        #[serde(skip_serializing_if = "Option::is_none")]
        pub epsilon_high: Option<f64> = None,
        /// Give the advantages of a batch mean 0 and deviation 1. Default false (TRL's).
        pub normalize_advantages: bool = false,
        /// Cut rewards to this range first. Default: none (TRL's).
        #[serde(skip_serializing_if = "Option::is_none")]
        pub reward_clip_range: Option<(f64, f64)> = None,
        /// Leave truncated responses out of the loss; they still count as each other's baseline. Default false (TRL's).
        pub mask_truncated_completions: bool = false,
    }
}

impl RlooConfig {
    fn clip(&self) -> Clip {
        Clip::new(self.epsilon, self.epsilon_high)
    }
}

impl AlgorithmConfig for RlooConfig {
    fn objective(&self) -> Box<dyn Objective> {
        Box::new(Rloo { options: self.clone() })
    }

    fn resolved(&self) -> Self {
        RlooConfig { epsilon_high: Some(self.clip().high), ..self.clone() }
    }

    fn validate(&self) -> Result<(), String> {
        clip::validate(self.epsilon, self.epsilon_high, None)?;
        ranges::at_least_zero("beta", self.beta)?;
        match self.reward_clip_range {
            Some((least, most)) if least.is_nan() || most.is_nan() || least > most => {
                Err(format!("reward_clip_range is [{least}, {most}]; the first must be at most the second"))
            }
            _ => Ok(()),
        }
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Rloo {
    options: RlooConfig,
}

impl Objective for Rloo {
    fn needs(&self) -> Needs {
        Needs { reference: self.options.beta != 0.0, ..Needs::of(WholeGroup { least: 2, drop_equal: false }) }
    }

    fn loss(&self, statistics: &TokenStatistics, batch: &MicroBatch<'_>) -> Loss {
        let logps = &statistics.logps;
        let kept = self.mask().per_token(batch, logps);
        let ratios = batch.sum_per_response(&((logps - batch.old_logps(logps)) * &kept)).exp();
        let advantages = batch.floats(logps, &self.advantages(batch));
        let (losses, clipped) = self.options.clip().loss(&ratios, &advantages);
        let value = losses.sum(Kind::Float) / batch.totals.responses.max(1) as f64;

        let mut metrics = self.metrics(&clipped, statistics, batch);
        metrics.add_part("loss", &value, batch);
        Loss { value, metrics }
    }
}

impl Rloo {
    fn mask(&self) -> LossMask {
        LossMask { skip_truncated: self.options.mask_truncated_completions }
    }

    /// R of each response of a group.
    fn rewards(&self, tree: &Tree) -> Vec<f64> {
        let reward = |branch: &Branch| {
            let reward = f64::from(branch.reward);
            let reward =
                self.options.reward_clip_range.map_or(reward, |(least, most)| reward.clamp(least, most));
            if self.options.beta == 0.0 || !self.mask().keeps(branch) {
                return reward;
            }
            reward - self.options.beta * sampled(branch).iter().sum::<f64>()
        };
        tree.branches.iter().map(reward).collect()
    }

    /// One advantage a response.
    fn advantages(&self, batch: &MicroBatch<'_>) -> Vec<f64> {
        let of = |trees: &[&Tree]| -> Vec<f64> {
            trees.iter().flat_map(|tree| leave_one_out(&self.rewards(tree))).collect()
        };
        let own = of(batch.trees);
        if !self.options.normalize_advantages {
            return own;
        }
        let all = of(batch.batch);
        let centre = mean(&all);
        scaled(&own.iter().map(|advantage| advantage - centre).collect::<Vec<_>>(), deviation(&all))
    }

    fn metrics(&self, clipped: &Clipped, statistics: &TokenStatistics, batch: &MicroBatch<'_>) -> Metrics {
        let mut metrics = Metrics::default();
        let mask = self.mask();
        clipped.sequence_metrics(&mut metrics);
        mask.mean(&mut metrics, "entropy", &statistics.entropies, batch);
        if self.options.beta != 0.0 {
            record_sampled(&mut metrics, "kl", batch, &mask);
        }
        reward_metrics(&mut metrics, batch, |tree| deviation(&self.rewards(tree)));
        metrics
    }
}
