//! What the critic-free algorithms read off a group: its rewards, and the figures about them.

use arriero_buffers::{Branch, Tree};

use super::advantages::{deviation, mean};
use crate::objective::{Metrics, MicroBatch};

/// DAPO's soft overlong punishment (Yu et al., 2025, eq. 13): no penalty up to the buffer before the token limit, then one
/// that grows in a straight line to the full penalty at the limit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Overlong {
    /// The buffer, as a share of the limit; 0 for no shaping.
    pub buffer: f64,
    /// What an answer loses that fills the limit.
    pub penalty: f64,
    /// The token limit.
    pub limit: usize,
}

impl Overlong {
    /// No shaping.
    pub const NONE: Overlong = Overlong { buffer: 0.0, penalty: 0.0, limit: 0 };

    /// The branch's reward with the punishment.
    pub fn reward(&self, branch: &Branch) -> f64 {
        let reward = f64::from(branch.reward);
        let buffer = self.buffer * self.limit as f64;
        if buffer <= 0.0 {
            return reward;
        }
        let excess = branch.loss_tokens() as f64 - (self.limit as f64 - buffer);
        reward - self.penalty * (excess / buffer).clamp(0.0, 1.0)
    }

    /// The rewards of a group.
    pub fn rewards(&self, tree: &Tree) -> Vec<f64> {
        tree.branches.iter().map(|branch| self.reward(branch)).collect()
    }
}

/// The rewards of a group, as the scorer gave them.
pub fn rewards(tree: &Tree) -> Vec<f64> {
    tree.branches.iter().map(|branch| f64::from(branch.reward)).collect()
}

/// Their standard deviation.
pub fn reward_deviation(tree: &Tree) -> f64 {
    deviation(&rewards(tree))
}

/// A deviation that counts as none (TRL's `isclose`).
pub fn is_zero(deviation: f64) -> bool {
    deviation.abs() <= 1e-8
}

/// TRL's `reward`, `reward_std` (over the batch) and `frac_reward_zero_std`; of the rewards as the scorer gave them, but for
/// the last, which is of `deviation_of` each tree.
pub fn reward_metrics(metrics: &mut Metrics, batch: &MicroBatch<'_>, deviation_of: impl Fn(&Tree) -> f64) {
    let all = |trees: &[&Tree]| -> Vec<f64> { trees.iter().flat_map(|tree| rewards(tree)).collect() };
    let own = all(batch.trees);
    metrics.add("reward", mean(&own) * own.len() as f64, own.len() as f64);
    metrics.add_whole("reward_std", deviation(&all(batch.batch)), batch);
    for tree in batch.trees {
        let size = tree.branches.len() as f64;
        metrics.add("frac_reward_zero_std", if is_zero(deviation_of(tree)) { size } else { 0.0 }, size);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// DAPO's numbers: a limit of 20 480 tokens, of which the last 4 096 are the buffer.
    #[test]
    fn the_punishment_grows_through_the_buffer() {
        let overlong = Overlong { buffer: 0.2, penalty: 1.0, limit: 20_480 };
        for (length, expected) in [(1, 0.5), (16_384, 0.5), (17_408, 0.25), (18_432, 0.0), (20_480, -0.5)] {
            let branch = Branch { tokens: vec![0; length], reward: 0.5, ..Branch::default() };
            assert!((overlong.reward(&branch) - expected).abs() < 1e-12, "{length}");
            assert_eq!(Overlong::NONE.reward(&branch), 0.5);
        }
    }

    /// What was inserted into the answer does not make it longer.
    #[test]
    fn only_what_the_policy_drew_is_punished_for_its_length() {
        let overlong = Overlong { buffer: 0.5, penalty: 1.0, limit: 8 };
        let is_context = (0..10).map(|index| (2..6).contains(&index)).collect();
        let branch = Branch { tokens: vec![0; 10], is_context, reward: 1.0, ..Branch::default() };
        // Six of ten are drawn: half the way through the buffer of four.
        assert!((overlong.reward(&branch) - 0.5).abs() < 1e-12);
    }
}
