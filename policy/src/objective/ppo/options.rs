//! PPO's options.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Ppo;
use crate::objective::terms::kl::KlEstimator;
use crate::objective::terms::ranges;
use crate::objective::{AlgorithmConfig, CriticKind, Objective, options};

/// Where the KL to the reference is paid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KlPlace {
    /// In the reward of each token, under the policy that sampled.
    Reward,
    /// In the loss of each token, under the policy that learns.
    Loss,
}

options! {
    /// PPO's options, under the names of TRL 0.24, whose defaults they have.
    pub struct PpoConfig {
        /// The critic: a head on the policy, or a model of its own, which starts from the policy's weights or from the reward model
        /// that an earlier stage trained, and takes as much memory again. Default `shared` (TRL: a model).
        pub critic: CriticKind = CriticKind::Shared,
        /// The critic's learning rate at the peak. Default: `learning_rate`.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub critic_learning_rate: Option<f64> = None,
        /// γ: what a reward is worth one token earlier. Default 1 (TRL's).
        pub gamma: f64 = 1.0,
        /// λ: 0 trusts the critic alone, 1 the rewards alone. Default 0.95 (TRL's).
        pub lam: f64 = 0.95,
        /// ε: how far from 1 a ratio still counts. Default 0.2 (TRL's).
        pub cliprange: f64 = 0.2,
        /// ε_v: how far from the old value a new one still counts. Default 0.2 (TRL's).
        pub cliprange_value: f64 = 0.2,
        /// c_v: weight of the values' loss. Default 0.1 (TRL's).
        pub vf_coef: f64 = 0.1,
        /// Where the KL to the reference is paid. Default `reward` (TRL's).
        pub kl: KlPlace = KlPlace::Reward,
        /// β, or where an adaptive β begins; 0 spares the reference. Default 0.05 (TRL's).
        pub kl_coef: f64 = 0.05,
        /// The estimator of the KL. Default `k1` in the reward (TRL's), `k3` in the loss (GRPO's).
        #[serde(skip_serializing_if = "Option::is_none")]
        pub kl_estimator: Option<KlEstimator> = None,
        /// The KL of a response, in nats, that an adaptive β aims at (Ziegler et al.: 6). Default: β is fixed (TRL's).
        #[serde(skip_serializing_if = "Option::is_none")]
        pub kl_target: Option<f64> = None,
        /// h: responses in which an adaptive β can move by about a fifth. Default 10 000 (Ziegler et al.'s).
        pub kl_horizon: f64 = 10_000.0,
        /// Give the rewards of all tokens of a stage variance 1 first. Default false (TRL's).
        pub whiten_rewards: bool = false,
        /// Give the advantages of all tokens of a stage mean 0 and variance 1. Default true (TRL's).
        pub whiten_advantages: bool = true,
        /// What a response loses that the token limit cut short. Default: nothing (TRL's).
        #[serde(skip_serializing_if = "Option::is_none")]
        pub missing_eos_penalty: Option<f64> = None,
        /// c_e: weight of the entropy bonus. Default 0 (TRL has none).
        pub entropy_coef: f64 = 0.0,
    }
}

impl PpoConfig {
    pub(super) fn estimator(&self) -> KlEstimator {
        self.kl_estimator.unwrap_or(match self.kl {
            KlPlace::Reward => KlEstimator::K1,
            KlPlace::Loss => KlEstimator::K3,
        })
    }
}

impl AlgorithmConfig for PpoConfig {
    fn objective(&self) -> Box<dyn Objective> {
        Box::new(Ppo::new(self.clone()))
    }

    fn resolved(&self) -> Self {
        PpoConfig { kl_estimator: Some(self.estimator()), ..self.clone() }
    }

    fn validate(&self) -> Result<(), String> {
        ranges::share("gamma", self.gamma)?;
        ranges::share("lam", self.lam)?;
        ranges::share("cliprange", self.cliprange)?;
        ranges::above_zero("cliprange_value", self.cliprange_value)?;
        ranges::at_least_zero("vf_coef", self.vf_coef)?;
        ranges::at_least_zero("kl_coef", self.kl_coef)?;
        ranges::above_zero("kl_horizon", self.kl_horizon)?;
        ranges::at_least_zero("critic_learning_rate", self.critic_learning_rate.unwrap_or(0.0))?;
        ranges::at_least_zero("missing_eos_penalty", self.missing_eos_penalty.unwrap_or(0.0))?;
        ranges::finite("entropy_coef", self.entropy_coef)?;
        if let Some(target) = self.kl_target {
            ranges::above_zero("kl_target", target)?;
            if self.kl_coef == 0.0 {
                return Err("kl_target is set, but kl_coef is 0; give β a beginning above 0".to_string());
            }
        }
        if self.kl == KlPlace::Loss && self.estimator() == KlEstimator::K1 {
            return Err(
                "kl_estimator is \"k1\", whose gradient in the loss is 0 on average; use \"k2\" or \"k3\", \
                        or kl = \"reward\""
                    .to_string(),
            );
        }
        Ok(())
    }
}
