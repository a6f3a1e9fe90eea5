//! Per-token estimators of KL(π ‖ π_ref) from samples of π (Schulman, "Approximating KL Divergence", 2020).

use serde::{Deserialize, Serialize};
use tch::Tensor;

/// With d = log π(y_t) − log π_ref(y_t):
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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

    /// The metric of its mean over tokens.
    pub fn metric(self) -> &'static str {
        match self {
            KlEstimator::K1 => "kl/k1",
            KlEstimator::K2 => "kl/k2",
            KlEstimator::K3 => "kl/k3",
        }
    }
}
