//! The clipped surrogate of PPO (Schulman et al., 2017, eq. 7) and what became of it.
//!
//! With ρ = π(y_t) / π_old(y_t) and an advantage A, the loss of a token is
//!
//! −min(min(ρ, δ) A, clip(ρ, 1 − ε, 1 + ε_high) A)
//!
//! ε_high = ε is PPO; ε_high > ε is DAPO's clip-higher (Yu et al., 2025); δ bounds what a negative advantage can do
//! where ρ is large (dual clip: Ye et al., 2020; two-sided clipping: INTELLECT-2, 2025).

use tch::Tensor;

use super::aggregate::LossMask;
use super::{Metrics, MicroBatch};

/// The bounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Clip {
    /// ε: how far below 1 a ratio still counts.
    pub low: f64,
    /// ε_high: how far above 1.
    pub high: f64,
    /// δ: the most that a ratio counts beside a negative advantage.
    pub dual: Option<f64>,
}

/// Where the gradient is cut, as 1 beside 0. For each ratio: is it below the region with a negative advantage, and above it with a positive one?
#[derive(Debug)]
pub struct Clipped {
    low: Tensor,
    high: Tensor,
}

impl Clip {
    /// The loss of each ratio, and where the gradient is cut. All tensors have one shape.
    pub fn loss(&self, ratios: &Tensor, advantages: &Tensor) -> (Tensor, Clipped) {
        let inside = ratios.clamp(1.0 - self.low, 1.0 + self.high);
        let bounded = self.dual.map_or_else(|| ratios.shallow_clone(), |dual| ratios.clamp_max(dual));
        let kind = ratios.kind();
        let fixed = bounded.detach();
        let clipped = Clipped {
            low: fixed.lt(1.0 - self.low).logical_and(&advantages.lt(0.0)).to_kind(kind),
            high: fixed.gt(1.0 + self.high).logical_and(&advantages.gt(0.0)).to_kind(kind),
        };
        (-(bounded * advantages).minimum(&(inside * advantages)), clipped)
    }

    /// The loss of each token, `[response tokens]`, with the ratio to π_old and one advantage a token; and its metrics.
    pub fn token_loss(
        &self,
        logps: &Tensor,
        advantages: &Tensor,
        batch: &MicroBatch<'_>,
        mask: &LossMask,
        metrics: &mut Metrics,
    ) -> Tensor {
        let old = batch.per_token(logps, |branch| branch.old_policy_logps().to_vec());
        let ratios = (logps - old).exp();
        record_ratios(metrics, &ratios);
        let (losses, clipped) = self.loss(&ratios, advantages);
        clipped.token_metrics(metrics, batch, mask);
        losses
    }
}

impl Clipped {
    /// TRL's `clip_ratio/…` of per-token ratios: shares of tokens, and the extremes over the sequences.
    pub fn token_metrics(&self, metrics: &mut Metrics, batch: &MicroBatch<'_>, mask: &LossMask) {
        let weights = mask.per_token(batch, &self.low);
        let lengths = mask.lengths(batch);
        let share = |clipped: &Tensor| -> Vec<f64> {
            let sums: Vec<f64> = doubles(&batch.sum_per_response(&(clipped * &weights)));
            sums.iter()
                .zip(&lengths)
                .filter(|(_, length)| **length > 0.0)
                .map(|(sum, length)| sum / length)
                .collect()
        };
        let lengths: f64 = lengths.iter().sum();
        let total = |clipped: &Tensor| (clipped * &weights).sum(tch::Kind::Double).double_value(&[]);
        record(
            metrics,
            (total(&self.low), total(&self.high)),
            lengths,
            &share(&self.low),
            &share(&self.high),
        );
    }

    /// The same of one ratio a sequence: shares of sequences.
    pub fn sequence_metrics(&self, metrics: &mut Metrics) {
        let (low, high) = (doubles(&self.low), doubles(&self.high));
        record(metrics, (low.iter().sum(), high.iter().sum()), low.len() as f64, &low, &high);
    }
}

fn record(metrics: &mut Metrics, (low, high): (f64, f64), weight: f64, lows: &[f64], highs: &[f64]) {
    metrics.add("clip_ratio/low_mean", low, weight);
    metrics.add("clip_ratio/high_mean", high, weight);
    metrics.add("clip_ratio/region_mean", low + high, weight);
    for &share in lows {
        metrics.lower("clip_ratio/low_min", share);
    }
    for &share in highs {
        metrics.raise("clip_ratio/high_max", share);
    }
}

fn doubles(tensor: &Tensor) -> Vec<f64> {
    crate::scoring::to_host(tensor).into_iter().map(f64::from).collect()
}

/// Adds the least and the greatest ratio: 1 as long as samples are fresh.
pub fn record_ratios(metrics: &mut Metrics, ratios: &Tensor) {
    if ratios.numel() > 0 {
        metrics.lower("ratio/min", ratios.min().double_value(&[]));
        metrics.raise("ratio/max", ratios.max().double_value(&[]));
    }
}

/// Checks the bounds.
pub(super) fn validate(low: f64, high: Option<f64>, dual: Option<f64>) -> Result<(), String> {
    if !(0.0..=1.0).contains(&low) {
        return Err(format!("epsilon is {low}; it must be at least 0 and at most 1"));
    }
    match (high, dual) {
        (Some(high), _) if !(high.is_finite() && high >= 0.0) => {
            Err(format!("epsilon_high is {high}; it must be at least 0"))
        }
        (_, Some(dual)) if !(dual.is_finite() && dual >= 1.0) => {
            Err(format!("delta is {dual}; it must be at least 1"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    /// Ratios below, in and above the region, with both signs of advantage, and one that only δ bounds. Loss and gradient
    /// by hand.
    #[test]
    fn losses_and_gradients_equal_hand_computed_numbers() {
        let ratios = Tensor::from_slice(&[0.5f64, 0.5, 1.1, 1.5, 1.5, 5.0]).set_requires_grad(true);
        let advantages = Tensor::from_slice(&[1.0f64, -1.0, 2.0, 1.0, -1.0, -1.0]);
        let clip = Clip { low: 0.2, high: 0.3, dual: Some(4.0) };
        let (losses, clipped) = clip.loss(&ratios, &advantages);
        losses.sum(Kind::Double).backward();
        let numbers = |tensor: &Tensor| Vec::<f64>::try_from(tensor.detach()).expect("numbers");
        assert_eq!(numbers(&losses), [-0.5, 0.8, -2.2, -1.3, 1.5, 4.0]);
        assert_eq!(numbers(&ratios.grad()), [-1.0, 0.0, -2.0, 0.0, 1.0, 0.0]);
        assert_eq!(numbers(&clipped.low), [0.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(numbers(&clipped.high), [0.0, 0.0, 0.0, 1.0, 0.0, 0.0]);
    }
}
