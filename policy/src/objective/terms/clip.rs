//! The clipped surrogate of PPO (Schulman et al., 2017, eq. 7) and what became of it.
//!
//! With ρ = π(y_t) / π_old(y_t) and an advantage A, the loss of a token is
//!
//! −min(min(ρ, δ) A, clip(ρ, 1 − ε, 1 + ε_high) A)
//!
//! ε_high = ε is PPO; ε_high > ε is DAPO's clip-higher (Yu et al., 2025); δ bounds what a negative advantage can do
//! where ρ is large (dual clip: Ye et al., 2020; two-sided clipping: INTELLECT-2, 2025).

use tch::{Kind, Tensor};

use super::aggregate::LossMask;
use super::ranges;
use crate::objective::{Metrics, MicroBatch};

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
    ratios: Tensor,
    low: Tensor,
    high: Tensor,
}

impl Clip {
    /// Without δ; where ε_high is open it is ε.
    pub fn new(epsilon: f64, epsilon_high: Option<f64>) -> Self {
        Clip { low: epsilon, high: epsilon_high.unwrap_or(epsilon), dual: None }
    }

    /// The loss of each ratio, and where the gradient is cut. All tensors have one shape.
    pub fn loss(&self, ratios: &Tensor, advantages: &Tensor) -> (Tensor, Clipped) {
        let inside = ratios.clamp(1.0 - self.low, 1.0 + self.high);
        let bounded = self.dual.map_or_else(|| ratios.shallow_clone(), |dual| ratios.clamp_max(dual));
        let kind = ratios.kind();
        let fixed = bounded.detach();
        let clipped = Clipped {
            ratios: ratios.detach(),
            low: fixed.lt(1.0 - self.low).logical_and(&advantages.lt(0.0)).to_kind(kind),
            high: fixed.gt(1.0 + self.high).logical_and(&advantages.gt(0.0)).to_kind(kind),
        };
        (-(bounded * advantages).minimum(&(inside * advantages)), clipped)
    }

    /// The loss of each token, `[response tokens]`, with the ratio to π_old and one advantage a token; and where its
    /// gradient is cut.
    pub fn token_loss(
        &self,
        logps: &Tensor,
        advantages: &Tensor,
        batch: &MicroBatch<'_>,
    ) -> (Tensor, Clipped) {
        let ratios = (logps - batch.old_logps(logps)).exp();
        self.loss(&ratios, advantages)
    }
}

/// The weight of each ratio, at most `cap` and without a gradient (CISPO: MiniMax-M1, 2025, eq. 5), and where it is cut
/// beside a positive advantage. All tensors have one shape.
pub fn capped(ratios: &Tensor, advantages: &Tensor, cap: f64) -> (Tensor, Clipped) {
    let high = ratios.gt(cap).logical_and(&advantages.gt(0.0)).to_kind(Kind::Float).detach();
    let clipped = Clipped { ratios: ratios.detach(), low: high.zeros_like(), high };
    (ratios.clamp_max(cap).detach(), clipped)
}

impl Clipped {
    /// The least and the greatest ratio, and TRL's `clip_ratio/…` of per-token ratios: shares of tokens, and the extremes
    /// over the sequences.
    pub fn token_metrics(&self, metrics: &mut Metrics, batch: &MicroBatch<'_>, mask: &LossMask) {
        self.ratio_metrics(metrics);
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
        let total = |clipped: &Tensor| (clipped * &weights).sum(Kind::Double).double_value(&[]);
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
        self.ratio_metrics(metrics);
        let (low, high) = (doubles(&self.low), doubles(&self.high));
        record(metrics, (low.iter().sum(), high.iter().sum()), low.len() as f64, &low, &high);
    }

    /// The least and the greatest ratio, and TRL's `cispo_clip_ratio`: the share of ratios above the cap, each with its
    /// weight.
    pub fn capped_metrics(&self, metrics: &mut Metrics, weights: &Tensor) {
        self.ratio_metrics(metrics);
        let sum = |tensor: &Tensor| tensor.sum(Kind::Double).double_value(&[]);
        metrics.add("cispo_clip_ratio", sum(&(&self.high * weights)), sum(weights));
    }

    /// The least and the greatest ratio: 1 as long as samples are fresh.
    fn ratio_metrics(&self, metrics: &mut Metrics) {
        if self.ratios.numel() > 0 {
            metrics.lower("ratio/min", self.ratios.min().double_value(&[]));
            metrics.raise("ratio/max", self.ratios.max().double_value(&[]));
        }
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
    crate::weights::to_host(tensor).into_iter().map(f64::from).collect()
}

/// Checks the bounds' options.
///
/// # Errors
/// As [`AlgorithmConfig::validate`](crate::objective::AlgorithmConfig::validate).
pub fn validate(epsilon: f64, epsilon_high: Option<f64>, delta: Option<f64>) -> Result<(), String> {
    ranges::share("epsilon", epsilon)?;
    if let Some(high) = epsilon_high {
        ranges::at_least_zero("epsilon_high", high)?;
    }
    match delta {
        Some(delta) => ranges::within("delta", delta, delta.is_finite() && delta >= 1.0, "at least 1"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
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
