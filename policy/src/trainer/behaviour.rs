//! How far the policy in training is from the one that sampled, token by token.

use std::collections::BTreeMap;

use arriero_buffers::Branch;

use crate::objective::MicroBatch;

/// log π(y_t) − log μ(y_t) of response tokens, μ being the policy that sampled them.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct BehaviourDifferences(Vec<f32>);

impl BehaviourDifferences {
    /// Of a micro-batch with these log-probabilities of its tokens; of those tokens that have one under the policy that
    /// sampled them.
    pub fn of(logps: &[f32], batch: &MicroBatch<'_>) -> Self {
        if logps.is_empty() {
            return BehaviourDifferences::default();
        }
        let pieces = batch.responses().zip(Branch::split_by_loss_tokens(batch.responses(), logps));
        let differences = |(branch, own): (&Branch, &[f32])| -> Vec<f32> {
            own.iter().zip(&branch.behaviour_logps).map(|(ours, theirs)| ours - theirs).collect()
        };
        BehaviourDifferences(pieces.flat_map(differences).collect())
    }

    /// Adds those of other tokens.
    pub fn merge(&mut self, others: BehaviourDifferences) {
        self.0.extend(others.0);
    }

    /// What they come to.
    ///
    /// On the first step after sampling both policies have the same weights, so that this is what generation and
    /// training differ by in rounding; on later steps it is how far training has moved the policy.
    pub fn metrics(&self) -> BTreeMap<String, f64> {
        let mut sizes: Vec<f64> = self.0.iter().map(|&difference| f64::from(difference).abs()).collect();
        sizes.sort_unstable_by(f64::total_cmp);
        let count = sizes.len() as f64;
        let Some(&max) = sizes.last() else { return BTreeMap::new() };
        let ratios: f64 = self.0.iter().map(|&difference| f64::from(difference).exp()).sum();
        // The least size that 99.9% of the tokens do not exceed.
        let rank = (0.999 * count).ceil() as usize;
        [
            ("behaviour_logp_difference/mean", sizes.iter().sum::<f64>() / count),
            ("behaviour_logp_difference/p99.9", sizes[rank.clamp(1, sizes.len()) - 1]),
            ("behaviour_logp_difference/max", max),
            ("behaviour_ratio/mean", ratios / count),
        ]
        .map(|(name, value)| (name.to_string(), value))
        .into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1,000 tokens, of which one differs by −ln 2 and one by ln 3: 99.9% differ by at most ln 2, and the
    /// ratios are 998 times 1, 1/2 and 3.
    #[test]
    fn what_the_sampler_says_is_compared_token_by_token() {
        let mut differences = vec![0.0f32; 1000];
        (differences[7], differences[400]) = (-std::f32::consts::LN_2, 3.0f32.ln());
        let metrics = BehaviourDifferences(differences).metrics();
        let (ln2, ln3) = (std::f64::consts::LN_2, 3.0f64.ln());
        for (name, expected) in [
            ("behaviour_logp_difference/mean", (ln2 + ln3) / 1000.0),
            ("behaviour_logp_difference/p99.9", ln2),
            ("behaviour_logp_difference/max", ln3),
            ("behaviour_ratio/mean", 1.0015),
        ] {
            assert!((metrics[name] - expected).abs() < 1e-6, "{name}: {}", metrics[name]);
        }
        assert!(BehaviourDifferences::default().metrics().is_empty());
    }
}
