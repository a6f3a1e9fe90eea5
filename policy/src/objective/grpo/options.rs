//! GRPO's options, and those of the kinds that are GRPO with other defaults.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Grpo;
use crate::objective::terms::correction::CorrectionMode;
use crate::objective::terms::kl::KlEstimator;
use crate::objective::terms::{clip, ranges};
use crate::objective::{AlgorithmConfig, Objective, options};

/// How the tokens' losses become one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LossType {
    /// Mean over the tokens of each sequence, then over the sequences.
    Grpo,
    /// Sum over the tokens, divided by the sequences times `max_completion_length`.
    DrGrpo,
    /// Mean over the tokens of the batch.
    Dapo,
    /// The same as `dapo`. (In TRL it is a mean over the micro-batch; here no loss depends on how a batch is cut.)
    Bnpo,
    /// As `dapo`, but the ratio itself is cut at ε_high and weights the log-probability: no token loses its gradient.
    Cispo,
}

/// What advantages are divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScaleRewards {
    /// The standard deviation of the group's rewards.
    Group,
    /// The standard deviation of all rewards of the batch.
    Batch,
    /// Nothing.
    None,
}

/// Whose probabilities the ratio compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ImportanceLevel {
    /// Each token's.
    Token,
    /// The sequence's, as the geometric mean over its tokens (GSPO).
    Sequence,
}

options! {
    /// GRPO's options under the names of TRL 1.16, whose defaults they have. The kinds that are GRPO with other defaults have
    /// the same options.
    pub struct GrpoConfig given as GrpoGiven {
        /// How the tokens' losses become one number. GRPO's default: `dapo` (TRL's).
        pub loss_type: LossType = LossType::Dapo,
        /// ε: how far below 1 a ratio still counts. GRPO's default: 0.2 (TRL's).
        pub epsilon: f64 = 0.2,
        /// ε_high: how far above 1; with `cispo` the most that a ratio counts. GRPO's default: ε (TRL's).
        #[serde(skip_serializing_if = "Option::is_none")]
        pub epsilon_high: Option<f64> = None,
        /// δ: the most that a ratio counts beside a negative advantage; should be above 1 + ε_high. GRPO's default: no bound
        /// (TRL's).
        #[serde(skip_serializing_if = "Option::is_none")]
        pub delta: Option<f64> = None,
        /// β: weight of the KL to the reference; 0 spares its computation. GRPO's default: 0 (TRL's).
        pub beta: f64 = 0.0,
        /// How the KL is estimated. GRPO's default: `k3` (TRL's).
        pub kl_estimator: KlEstimator = KlEstimator::K3,
        /// Multiply the KL by the ratio, which makes its gradient that of the reverse KL (DeepSeek-V3.2, 2025). GRPO's default: true
        /// (TRL's).
        pub use_bias_correction_kl: bool = true,
        /// What advantages are divided by. GRPO's default: `group` (TRL's).
        pub scale_rewards: ScaleRewards = ScaleRewards::Group,
        /// Whose probabilities the ratio compares. GRPO's default: `token` (TRL's).
        pub importance_sampling_level: ImportanceLevel = ImportanceLevel::Token,
        /// Correction for a generator whose probabilities are not the trainer's: costs one more forward pass over the
        /// samples. GRPO's default: `none`, since in `lockstep` mode both agree but for rounding. (TRL: `sequence_mask` beside vLLM.)
        pub importance_sampling_mode: CorrectionMode = CorrectionMode::None,
        /// The correction's cap. GRPO's default: 3 (TRL's).
        pub importance_sampling_clip_max: f64 = 3.0,
        /// The correction's least ratio. GRPO's default: none (TRL's).
        #[serde(skip_serializing_if = "Option::is_none")]
        pub importance_sampling_clip_min: Option<f64> = None,
        /// c: weight of the entropy bonus, a mean over tokens. GRPO's default: 0 (TRL's).
        pub entropy_coef: f64 = 0.0,
        /// Drop groups whose rewards are all equal before training, counted as `all_rewards_equal` (DAPO's dynamic sampling,
        /// but the batch is not filled up again). GRPO's default: false (TRL's).
        pub drop_equal_rewards: bool = false,
        /// Leave truncated responses out of the loss; they still count as each other's baseline. GRPO's default: false (TRL's).
        pub mask_truncated_completions: bool = false,
        /// DAPO's soft overlong punishment: the last share of the token limit in which the penalty grows. GRPO's default: 0: none.
        pub overlong_buffer: f64 = 0.0,
        /// What an answer loses that fills the token limit. GRPO's default: 1 (DAPO's).
        pub overlong_penalty: f64 = 1.0,
        /// The constant length of `dr_grpo`, and the limit of the overlong punishment. GRPO's default: the generator's
        /// `max_new_tokens` (TRL's).
        #[serde(skip_serializing_if = "Option::is_none")]
        pub max_completion_length: Option<usize> = None,
    }
}

impl From<GrpoGiven> for GrpoConfig {
    fn from(given: GrpoGiven) -> Self {
        given.over(GrpoConfig::default())
    }
}

impl GrpoConfig {
    /// ε_high.
    pub(super) fn high(&self) -> f64 {
        self.epsilon_high.unwrap_or(self.epsilon)
    }
}

impl AlgorithmConfig for GrpoConfig {
    fn objective(&self) -> Box<dyn Objective> {
        Box::new(Grpo { options: self.clone() })
    }

    fn resolved(&self) -> Self {
        GrpoConfig { epsilon_high: Some(self.high()), ..self.clone() }
    }

    fn fit(&mut self, max_new_tokens: usize) {
        self.max_completion_length.get_or_insert(max_new_tokens);
    }

    fn validate(&self) -> Result<(), String> {
        clip::validate(self.epsilon, self.epsilon_high, self.delta)?;
        ranges::at_least_zero("beta", self.beta)?;
        ranges::length("max_completion_length", self.max_completion_length)?;
        ranges::finite("entropy_coef", self.entropy_coef)?;
        let most = self.importance_sampling_clip_max;
        ranges::within("importance_sampling_clip_max", most, most > 0.0, "above 0")?;
        if let Some(least) = self.importance_sampling_clip_min {
            let range = "at least 0 and at most importance_sampling_clip_max";
            ranges::within("importance_sampling_clip_min", least, (0.0..=most).contains(&least), range)?;
        }
        ranges::share("overlong_buffer", self.overlong_buffer)?;
        ranges::at_least_zero("overlong_penalty", self.overlong_penalty)
    }
}

/// Makes the options of a kind that is GRPO with the given defaults in place of [`GrpoConfig`]'s.
macro_rules! variant {
    ($(#[$about:meta])* $name:ident { $($option:ident: $default:expr),* $(,)? }) => {
        $(#[$about])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, schemars::JsonSchema)]
        #[serde(transparent)]
        pub struct $name(pub super::grpo::GrpoConfig);

        impl Default for $name {
            fn default() -> Self {
                $name(super::grpo::GrpoConfig { $($option: $default,)* ..Default::default() })
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let given = <super::grpo::GrpoGiven as serde::Deserialize>::deserialize(deserializer)?;
                Ok($name(given.over(Self::default().0)))
            }
        }

        impl super::AlgorithmConfig for $name {
            fn objective(&self) -> Box<dyn super::Objective> {
                self.0.objective()
            }

            fn resolved(&self) -> Self {
                $name(self.0.resolved())
            }

            fn fit(&mut self, max_new_tokens: usize) {
                self.0.fit(max_new_tokens);
            }

            fn validate(&self) -> Result<(), String> {
                self.0.validate()
            }
        }
    };
}

pub(in crate::objective) use variant;
