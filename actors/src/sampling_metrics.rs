//! A sampling phase in numbers.

use std::collections::BTreeMap;

use crate::rejection_sampler::GroupSummary;

/// Running sums over the groups of a phase.
#[derive(Debug, Default)]
pub(crate) struct SamplingMetrics {
    groups: u64,
    completions: u64,
    reward_sum: f64,
    best_sum: f64,
    deviation_sum: f64,
    constant_groups: u64,
    length_sum: u64,
    unfinished: u64,
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
    pub fn add(&mut self, group: &GroupSummary) {
        let n = group.rewards.len() as f64;
        let rewards = || group.rewards.iter().map(|&reward| f64::from(reward));
        let mean = rewards().sum::<f64>() / n.max(1.0);
        let squares: f64 = rewards().map(|reward| (reward - mean).powi(2)).sum();
        let deviation = if n > 1.0 { (squares / (n - 1.0)).sqrt() } else { 0.0 };
        self.groups += 1;
        self.completions += group.rewards.len() as u64;
        self.reward_sum += rewards().sum::<f64>();
        self.best_sum += rewards().fold(f64::NEG_INFINITY, f64::max);
        self.deviation_sum += deviation;
        self.constant_groups += u64::from(squares == 0.0);
        self.length_sum += group.lengths.iter().map(|&length| length as u64).sum::<u64>();
        self.unfinished += group.unfinished as u64;
        for (name, (sum, count)) in &group.components {
            let all = self.components.entry(name.clone()).or_default();
            *all = (all.0 + sum, all.1 + count);
        }
    }

    /// The generator's account since it began.
    pub fn sampled(&mut self, tokens: u64, seconds: f64) {
        (self.tokens, self.seconds) = (self.tokens_before + tokens, self.seconds_before + seconds);
    }

    /// A new generator counts from 0; what the old one sampled was paid for as well.
    pub fn generator_restarted(&mut self) {
        (self.tokens_before, self.seconds_before) = (self.tokens, self.seconds);
    }

    /// Tokens that an earlier arm had sampled from the same weights. They count as if this arm had sampled
    /// them itself, so that arms compare whatever their order.
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
        (self.completions > 0).then(|| self.reward_sum / self.completions as f64)
    }

    pub fn tokens_per_second(&self) -> Option<f64> {
        (self.seconds() > 0.0).then(|| self.tokens() as f64 / self.seconds())
    }

    /// The phase's metrics, under TRL's names where the definition is TRL's.
    pub fn finish(&self, accepted: u64, dropped: &BTreeMap<&'static str, u64>) -> BTreeMap<String, f64> {
        let groups = self.groups.max(1) as f64;
        let completions = self.completions.max(1) as f64;
        let mut metrics = BTreeMap::from([
            ("reward".to_string(), self.reward_sum / completions),
            ("reward_std".to_string(), self.deviation_sum / groups),
            ("reward/best_of_n".to_string(), self.best_sum / groups),
            ("frac_reward_zero_std".to_string(), self.constant_groups as f64 / groups),
            ("completions/mean_length".to_string(), self.length_sum as f64 / completions),
            ("completions/clipped_ratio".to_string(), self.unfinished as f64 / completions),
            ("groups/accepted".to_string(), accepted as f64),
            ("tokens/sampled".to_string(), self.tokens() as f64),
            ("tokens/reused".to_string(), self.reused_tokens as f64),
            ("tokens_per_second".to_string(), self.tokens_per_second().unwrap_or(0.0)),
            ("seconds".to_string(), self.seconds()),
        ]);
        for (name, (sum, count)) in &self.components {
            metrics.insert(format!("rewards/{name}/mean"), sum / *count as f64);
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
        let group = |rewards: [f32; 2], lengths: [usize; 2], unfinished, sum| GroupSummary {
            rewards: rewards.into(),
            lengths: lengths.into(),
            unfinished,
            components: BTreeMap::from([("math/correct".to_string(), (sum, 2))]),
        };
        metrics.add(&group([0.0, 1.0], [4, 8], 1, 1.0));
        metrics.add(&group([1.0, 1.0], [2, 2], 0, 2.0));
        metrics.sampled(6, 1.5);
        metrics.generator_restarted();
        metrics.sampled(10, 0.5);
        let found = metrics.finish(1, &BTreeMap::from([("all_rewards_equal", 1)]));
        for (name, expected) in [
            ("reward", 0.75),
            // Unbiased: √0.5 and 0, averaged.
            ("reward_std", 0.5f64.sqrt() / 2.0),
            ("reward/best_of_n", 1.0),
            ("rewards/math/correct/mean", 0.75),
            ("frac_reward_zero_std", 0.5),
            ("completions/mean_length", 4.0),
            ("completions/clipped_ratio", 0.25),
            ("groups/accepted", 1.0),
            ("groups/dropped/all_rewards_equal", 1.0),
            ("tokens_per_second", 8.0),
        ] {
            assert!((found[name] - expected).abs() < 1e-12, "{name}: {}", found[name]);
        }
    }
}
