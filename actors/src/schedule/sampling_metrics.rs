//! A sampling phase in numbers.

use std::collections::BTreeMap;

use arriero_policy::objective::terms::advantages::{deviation, mean};

use serde::{Deserialize, Serialize};

use crate::report::GroupFigures;

/// Running sums over the groups of a phase.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SamplingMetrics {
    groups: u64,
    /// All finite ones.
    rewards: Vec<f64>,
    unusable: u64,
    best_sum: f64,
    deviation_sum: f64,
    constant_groups: u64,
    lengths: Vec<usize>,
    terminated: Vec<usize>,
    /// The sum of each component, and over how many completions.
    components: BTreeMap<String, (f64, u64)>,
    /// What generators that died had sampled.
    tokens_before: u64,
    seconds_before: f64,
    tokens: u64,
    seconds: f64,
    reused_tokens: u64,
    reused_seconds: f64,
}

impl SamplingMetrics {
    pub fn add(&mut self, group: &GroupFigures) {
        let rewards: Vec<f64> = group.rewards.iter().map(|&reward| f64::from(reward)).collect();
        let deviation = deviation(&rewards);
        self.groups += 1;
        self.unusable += group.unusable as u64;
        self.best_sum += rewards.iter().copied().reduce(f64::max).unwrap_or(0.0);
        self.deviation_sum += deviation;
        self.constant_groups += u64::from(deviation == 0.0);
        self.rewards.extend(rewards);
        self.lengths.extend(&group.lengths);
        self.terminated.extend(&group.terminated);
        for (name, (sum, count)) in &group.components {
            let all = self.components.entry(name.clone()).or_default();
            *all = (all.0 + sum, all.1 + count);
        }
    }

    /// The generator's account since it began.
    pub fn sampled(&mut self, tokens: u64, seconds: f64) {
        (self.tokens, self.seconds) = (self.tokens_before + tokens, self.seconds_before + seconds);
    }

    /// A new generator counts from 0. What the old one sampled was paid for as well.
    pub fn generator_restarted(&mut self) {
        (self.tokens_before, self.seconds_before) = (self.tokens, self.seconds);
    }

    /// Tokens that an earlier arm had sampled from the same weights. They count as if this arm had sampled them itself.
    /// So arms can be compared whatever their order.
    pub fn reused(&mut self, tokens: u64, seconds_per_token: f64) {
        (self.reused_tokens, self.reused_seconds) = (tokens, tokens as f64 * seconds_per_token);
    }

    /// Tokens sampled.
    pub fn tokens(&self) -> u64 {
        self.tokens + self.reused_tokens
    }

    /// What they cost.
    pub fn seconds(&self) -> f64 {
        self.seconds + self.reused_seconds
    }

    pub fn mean_reward(&self) -> Option<f64> {
        (!self.rewards.is_empty()).then(|| mean(&self.rewards))
    }

    pub fn tokens_per_second(&self) -> Option<f64> {
        (self.seconds() > 0.0).then(|| self.tokens() as f64 / self.seconds())
    }

    /// The phase's metrics, under TRL's names where the definition is TRL's.
    pub fn finish(&self, accepted: u64, dropped: &BTreeMap<String, u64>) -> BTreeMap<String, f64> {
        let groups = self.groups.max(1) as f64;
        let completions = self.lengths.len().max(1) as f64;
        let truncated = self.lengths.len() - self.terminated.len();
        let mut metrics = BTreeMap::from([
            ("reward".to_string(), mean(&self.rewards)),
            ("reward_std".to_string(), deviation(&self.rewards)),
            ("reward/group_std".to_string(), self.deviation_sum / groups),
            ("reward/best_of_n".to_string(), self.best_sum / groups),
            ("frac_reward_zero_std".to_string(), self.constant_groups as f64 / groups),
            ("completions/clipped_ratio".to_string(), truncated as f64 / completions),
            ("completions/reward_not_finite".to_string(), self.unusable as f64),
            ("groups/accepted".to_string(), accepted as f64),
            ("tokens/sampled".to_string(), self.tokens() as f64),
            ("tokens/reused".to_string(), self.reused_tokens as f64),
            ("tokens_per_second".to_string(), self.tokens_per_second().unwrap_or(0.0)),
            ("seconds".to_string(), self.seconds()),
        ]);
        for (name, (sum, count)) in &self.components {
            metrics.insert(format!("rewards/{name}/mean"), sum / *count as f64);
        }
        for (name, lengths) in [("length", &self.lengths), ("terminated_length", &self.terminated)] {
            let lengths: Vec<f64> = lengths.iter().map(|&length| length as f64).collect();
            let extreme = |fold: fn(f64, f64) -> f64| lengths.iter().copied().reduce(fold).unwrap_or(0.0);
            metrics.insert(format!("completions/mean_{name}"), mean(&lengths));
            metrics.insert(format!("completions/min_{name}"), extreme(f64::min));
            metrics.insert(format!("completions/max_{name}"), extreme(f64::max));
        }
        for (reason, count) in dropped {
            metrics.insert(format!("groups/dropped/{reason}"), *count as f64);
        }
        metrics
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_means_are_those_of_the_definitions() {
        let mut metrics = SamplingMetrics::default();
        let group =
            |rewards: &[f32], lengths: &[usize], terminated: &[usize], unusable, correct| GroupFigures {
                rewards: rewards.to_vec(),
                lengths: lengths.to_vec(),
                terminated: terminated.to_vec(),
                unusable,
                components: BTreeMap::from([("math/correct".to_string(), (correct, 2))]),
            };
        metrics.add(&group(&[0.0, 1.0], &[4, 8], &[4], 0, 1.0));
        // A third reward was not finite.
        metrics.add(&group(&[1.0, 1.0], &[2, 2, 3], &[2, 2, 3], 1, 2.0));
        metrics.sampled(6, 1.5);
        metrics.generator_restarted();
        metrics.sampled(10, 0.5);
        let found = metrics.finish(1, &BTreeMap::from([("all_rewards_equal".to_string(), 1)]));
        for (name, expected) in [
            ("reward", 0.75),
            // Unbiased, of 0, 1, 1, 1.
            ("reward_std", 0.5),
            // √0.5 and 0, averaged.
            ("reward/group_std", 0.5f64.sqrt() / 2.0),
            ("reward/best_of_n", 1.0),
            ("rewards/math/correct/mean", 0.75),
            ("frac_reward_zero_std", 0.5),
            ("completions/mean_length", 3.8),
            ("completions/max_length", 8.0),
            ("completions/mean_terminated_length", 2.75),
            ("completions/min_terminated_length", 2.0),
            ("completions/max_terminated_length", 4.0),
            ("completions/clipped_ratio", 0.2),
            ("completions/reward_not_finite", 1.0),
            ("groups/accepted", 1.0),
            ("groups/dropped/all_rewards_equal", 1.0),
            ("tokens_per_second", 8.0),
        ] {
            assert!((found[name] - expected).abs() < 1e-12, "{name}: {}", found[name]);
        }
    }
}
