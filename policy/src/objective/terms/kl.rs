//! Per-token estimators of KL(π ‖ π_ref) from samples of π (Schulman, "Approximating KL Divergence", 2020).

use arriero_buffers::Branch;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::aggregate::LossMask;
use crate::objective::{Metrics, MicroBatch};

/// With d = log π(y_t) − log π_ref(y_t):
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KlEstimator {
    /// d: unbiased, may be negative. As a loss its gradient has mean 0, so it belongs into the reward.
    K1,
    /// d² / 2: biased, low variance; as a loss its gradient is that of the KL.
    K2,
    /// e^−d + d − 1: unbiased, never negative (GRPO's and TRL's).
    K3,
}

impl KlEstimator {
    /// One number a token, in nats.
    pub fn per_token(self, logps: &Tensor, reference: &Tensor) -> Tensor {
        let difference = logps - reference;
        match self {
            KlEstimator::K1 => difference,
            KlEstimator::K2 => difference.square() * 0.5,
            KlEstimator::K3 => (-&difference).expm1() + difference,
        }
    }

    /// The same of two numbers.
    pub fn of(self, logp: f64, reference: f64) -> f64 {
        let difference = logp - reference;
        match self {
            KlEstimator::K1 => difference,
            KlEstimator::K2 => difference * difference / 2.0,
            KlEstimator::K3 => (-difference).exp_m1() + difference,
        }
    }

    /// The metric of its mean over tokens, as it is (TRL's `kl` is k3 times the ratio).
    pub fn metric(self) -> &'static str {
        match self {
            KlEstimator::K1 => "kl/k1",
            KlEstimator::K2 => "kl/k2",
            KlEstimator::K3 => "kl/k3",
        }
    }
}

/// k1 of each token under the policy that sampled, log π_old − log π_ref: what a KL within the reward is made of.
pub fn sampled(branch: &Branch) -> Vec<f64> {
    let pairs = branch.old_policy_logps().iter().zip(&branch.reference_logps);
    pairs.map(|(old, reference)| f64::from(*old) - f64::from(*reference)).collect()
}

/// Adds [`sampled`] to the mean called `name`, over the tokens that carry loss.
pub fn record_sampled(metrics: &mut Metrics, name: &'static str, batch: &MicroBatch<'_>, mask: &LossMask) {
    for branch in batch.responses().filter(|branch| mask.keeps(branch)) {
        metrics.add(name, sampled(branch).iter().sum(), branch.loss_tokens() as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// π = e^−1 and π_ref = e^−1.5: d = 0.5.
    #[test]
    fn estimators_equal_hand_computed_numbers() {
        let (logps, reference) = (Tensor::from_slice(&[-1.0f32]), Tensor::from_slice(&[-1.5f32]));
        for (estimator, expected) in
            [(KlEstimator::K1, 0.5), (KlEstimator::K2, 0.125), (KlEstimator::K3, 0.106_530_659_712_633)]
        {
            let found = estimator.per_token(&logps, &reference).double_value(&[0]);
            assert!((found - expected).abs() < 1e-7, "{estimator:?}: {found}");
            assert!((estimator.of(-1.0, -1.5) - expected).abs() < 1e-12, "{estimator:?}");
        }
    }

    /// Over all samples of π = (3/4, 1/4) against (1/2, 1/2), k1 and k3 average to the KL, 0.130812….
    #[test]
    fn k1_and_k3_are_unbiased() {
        let (p, q) = (Tensor::from_slice(&[0.75f64, 0.25]), Tensor::from_slice(&[0.5f64, 0.5]));
        for estimator in [KlEstimator::K1, KlEstimator::K3] {
            let kl = (estimator.per_token(&p.log(), &q.log()) * &p).sum(tch::Kind::Double).double_value(&[]);
            assert!((kl - 0.130_812_035_941_136_9).abs() < 1e-12, "{estimator:?}: {kl}");
        }
    }
}
