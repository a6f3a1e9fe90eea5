//! Group relative policy optimisation, with what others made of it as options.
//!
//! A prompt's G samples are each other's baseline. With ρ_t = π(y_t | x, y_<t) / π_old(y_t | x, y_<t),
//!
//! A_i = (r_i − mean(r)) / (std(r) + 1e-4),
//!
//! L = − agg_{i,t} [ min(ρ A_i, clip(ρ, 1 − ε, 1 + ε_high) A_i) − β KL_t ] − c H
//!
//! (Shao et al., "DeepSeekMath", 2024, eq. 3.) `agg` is a mean over the tokens of the batch, or one of the other
//! [`LossType`]s. π_old is what the sampler reported, both under the untempered distribution, which is also what the
//! trainer computes: with fresh samples ρ = 1 but for rounding, whatever the temperature. So with a temperature other
//! than 1, or with a truncated distribution, samples come from a distribution that the ratio does not know of.
//!
//! `dr_grpo`, `dapo`, `gspo` and `cispo` are kinds of their own with other defaults.

use arriero_buffers::Tree;
use arriero_buffers::selection::WholeGroup;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::advantages::{centred, deviation, scaled};
use super::aggregate::{Aggregation, LossMask, aggregate};
use super::clip::{Clip, record_ratios};
use super::correction::{Correction, CorrectionMode};
use super::group::{Overlong, add_loss, reward_metrics};
use super::kl::KlEstimator;
use super::{AlgorithmConfig, Loss, Metrics, MicroBatch, Needs, Objective, TokenStatistics};

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

/// GRPO's options under the names of TRL 1.16, whose defaults they have. What is not set comes from the kind's
/// defaults.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GrpoConfig {
    /// How the tokens' losses become one number. GRPO's default: `dapo` (TRL's).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_type: Option<LossType>,
    /// ε: how far below 1 a ratio still counts. GRPO's default: 0.2 (TRL's).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epsilon: Option<f64>,
    /// ε_high: how far above 1; with `cispo` the most that a ratio counts. GRPO's default: ε (TRL's).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epsilon_high: Option<f64>,
    /// δ: the most that a ratio counts beside a negative advantage; should be above 1 + ε_high. GRPO's default: no bound
    /// (TRL's).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delta: Option<f64>,
    /// β: weight of the KL to the reference; 0 spares its computation. GRPO's default: 0 (TRL's).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta: Option<f64>,
    /// How the KL is estimated. GRPO's default: `k3` (TRL's).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl_estimator: Option<KlEstimator>,
    /// Multiply the KL by the ratio, which makes its gradient that of the reverse KL (DeepSeek-V3.2, 2025). GRPO's default: true
    /// (TRL's).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_bias_correction_kl: Option<bool>,
    /// What advantages are divided by. GRPO's default: `group` (TRL's).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale_rewards: Option<ScaleRewards>,
    /// Whose probabilities the ratio compares. GRPO's default: `token` (TRL's).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub importance_sampling_level: Option<ImportanceLevel>,
    /// Correction for a generator whose probabilities are not the trainer's: costs one more forward pass over the
    /// samples. GRPO's default: `none`, since in `lockstep` mode both agree but for rounding. (TRL: `sequence_mask` beside vLLM.)
    #[serde(skip_serializing_if = "Option::is_none")]
    pub importance_sampling_mode: Option<CorrectionMode>,
    /// The correction's cap. GRPO's default: 3 (TRL's).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub importance_sampling_clip_max: Option<f64>,
    /// The correction's least ratio. GRPO's default: none (TRL's).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub importance_sampling_clip_min: Option<f64>,
    /// c: weight of the entropy bonus, a mean over tokens. GRPO's default: 0 (TRL's).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entropy_coef: Option<f64>,
    /// Drop groups whose rewards are all equal before training, counted as `all_rewards_equal` (DAPO's dynamic sampling,
    /// but the batch is not filled up again). GRPO's default: false (TRL's).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drop_equal_rewards: Option<bool>,
    /// Leave truncated responses out of the loss; they still count as each other's baseline. GRPO's default: false (TRL's).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask_truncated_completions: Option<bool>,
    /// DAPO's soft overlong punishment: the last share of the token limit in which the penalty grows. GRPO's default: 0: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overlong_buffer: Option<f64>,
    /// What an answer loses that fills the token limit. GRPO's default: 1 (DAPO's).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overlong_penalty: Option<f64>,
    /// The constant length of `dr_grpo`, and the limit of the overlong punishment. GRPO's default: the generator's
    /// `max_new_tokens` (TRL's).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_completion_length: Option<usize>,
}

/// [`GrpoConfig`] with nothing left open.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GrpoOptions {
    /// See [`GrpoConfig::loss_type`].
    pub loss_type: LossType,
    /// See [`GrpoConfig::epsilon`].
    pub epsilon: f64,
    /// See [`GrpoConfig::epsilon_high`].
    pub epsilon_high: Option<f64>,
    /// See [`GrpoConfig::delta`].
    pub delta: Option<f64>,
    /// See [`GrpoConfig::beta`].
    pub beta: f64,
    /// See [`GrpoConfig::kl_estimator`].
    pub kl_estimator: KlEstimator,
    /// See [`GrpoConfig::use_bias_correction_kl`].
    pub use_bias_correction_kl: bool,
    /// See [`GrpoConfig::scale_rewards`].
    pub scale_rewards: ScaleRewards,
    /// See [`GrpoConfig::importance_sampling_level`].
    pub importance_sampling_level: ImportanceLevel,
    /// See [`GrpoConfig::importance_sampling_mode`].
    pub importance_sampling_mode: CorrectionMode,
    /// See [`GrpoConfig::importance_sampling_clip_max`].
    pub importance_sampling_clip_max: f64,
    /// See [`GrpoConfig::importance_sampling_clip_min`].
    pub importance_sampling_clip_min: Option<f64>,
    /// See [`GrpoConfig::entropy_coef`].
    pub entropy_coef: f64,
    /// See [`GrpoConfig::drop_equal_rewards`].
    pub drop_equal_rewards: bool,
    /// See [`GrpoConfig::mask_truncated_completions`].
    pub mask_truncated_completions: bool,
    /// See [`GrpoConfig::overlong_buffer`].
    pub overlong_buffer: f64,
    /// See [`GrpoConfig::overlong_penalty`].
    pub overlong_penalty: f64,
    /// See [`GrpoConfig::max_completion_length`].
    pub max_completion_length: Option<usize>,
}

impl GrpoOptions {
    /// TRL 1.16's defaults.
    pub const TRL: GrpoOptions = GrpoOptions {
        loss_type: LossType::Dapo,
        epsilon: 0.2,
        epsilon_high: None,
        delta: None,
        beta: 0.0,
        kl_estimator: KlEstimator::K3,
        use_bias_correction_kl: true,
        scale_rewards: ScaleRewards::Group,
        importance_sampling_level: ImportanceLevel::Token,
        importance_sampling_mode: CorrectionMode::None,
        importance_sampling_clip_max: 3.0,
        importance_sampling_clip_min: None,
        entropy_coef: 0.0,
        drop_equal_rewards: false,
        mask_truncated_completions: false,
        overlong_buffer: 0.0,
        overlong_penalty: 1.0,
        max_completion_length: None,
    };

    /// Checks the ranges.
    ///
    /// # Errors
    /// As [`AlgorithmConfig::validate`].
    pub fn validate(&self) -> Result<(), String> {
        super::clip::validate(self.epsilon, self.epsilon_high, self.delta)?;
        super::kl::validate_beta(self.beta)?;
        super::aggregate::validate_length(self.max_completion_length)?;
        let (least, most) = (self.importance_sampling_clip_min, self.importance_sampling_clip_max);
        for (name, value, range, holds) in [
            ("entropy_coef", self.entropy_coef, "a finite number", self.entropy_coef.is_finite()),
            ("importance_sampling_clip_max", most, "above 0", most > 0.0),
            (
                "importance_sampling_clip_min",
                least.unwrap_or(0.0),
                "at least 0 and at most importance_sampling_clip_max",
                least.is_none_or(|least| (0.0..=most).contains(&least)),
            ),
            (
                "overlong_buffer",
                self.overlong_buffer,
                "at least 0 and at most 1",
                (0.0..=1.0).contains(&self.overlong_buffer),
            ),
            (
                "overlong_penalty",
                self.overlong_penalty,
                "at least 0",
                self.overlong_penalty.is_finite() && self.overlong_penalty >= 0.0,
            ),
        ] {
            if !holds {
                return Err(format!("{name} is {value}; it must be {range}"));
            }
        }
        Ok(())
    }
}

impl GrpoConfig {
    /// The options, where what is not set comes from `defaults`.
    pub fn over(&self, defaults: &GrpoOptions) -> GrpoOptions {
        GrpoOptions {
            loss_type: self.loss_type.unwrap_or(defaults.loss_type),
            epsilon: self.epsilon.unwrap_or(defaults.epsilon),
            epsilon_high: self.epsilon_high.or(defaults.epsilon_high),
            delta: self.delta.or(defaults.delta),
            beta: self.beta.unwrap_or(defaults.beta),
            kl_estimator: self.kl_estimator.unwrap_or(defaults.kl_estimator),
            use_bias_correction_kl: self.use_bias_correction_kl.unwrap_or(defaults.use_bias_correction_kl),
            scale_rewards: self.scale_rewards.unwrap_or(defaults.scale_rewards),
            importance_sampling_level: self
                .importance_sampling_level
                .unwrap_or(defaults.importance_sampling_level),
            importance_sampling_mode: self
                .importance_sampling_mode
                .unwrap_or(defaults.importance_sampling_mode),
            importance_sampling_clip_max: self
                .importance_sampling_clip_max
                .unwrap_or(defaults.importance_sampling_clip_max),
            importance_sampling_clip_min: self
                .importance_sampling_clip_min
                .or(defaults.importance_sampling_clip_min),
            entropy_coef: self.entropy_coef.unwrap_or(defaults.entropy_coef),
            drop_equal_rewards: self.drop_equal_rewards.unwrap_or(defaults.drop_equal_rewards),
            mask_truncated_completions: self
                .mask_truncated_completions
                .unwrap_or(defaults.mask_truncated_completions),
            overlong_buffer: self.overlong_buffer.unwrap_or(defaults.overlong_buffer),
            overlong_penalty: self.overlong_penalty.unwrap_or(defaults.overlong_penalty),
            max_completion_length: self.max_completion_length.or(defaults.max_completion_length),
        }
    }
}

impl From<GrpoOptions> for GrpoConfig {
    fn from(options: GrpoOptions) -> Self {
        GrpoConfig {
            loss_type: Some(options.loss_type),
            epsilon: Some(options.epsilon),
            epsilon_high: Some(options.epsilon_high.unwrap_or(options.epsilon)),
            delta: options.delta,
            beta: Some(options.beta),
            kl_estimator: Some(options.kl_estimator),
            use_bias_correction_kl: Some(options.use_bias_correction_kl),
            scale_rewards: Some(options.scale_rewards),
            importance_sampling_level: Some(options.importance_sampling_level),
            importance_sampling_mode: Some(options.importance_sampling_mode),
            importance_sampling_clip_max: Some(options.importance_sampling_clip_max),
            importance_sampling_clip_min: options.importance_sampling_clip_min,
            entropy_coef: Some(options.entropy_coef),
            drop_equal_rewards: Some(options.drop_equal_rewards),
            mask_truncated_completions: Some(options.mask_truncated_completions),
            overlong_buffer: Some(options.overlong_buffer),
            overlong_penalty: Some(options.overlong_penalty),
            max_completion_length: options.max_completion_length,
        }
    }
}

/// The options of a kind that is GRPO over other `DEFAULTS`, which its file has beside it.
macro_rules! variant {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        #[serde(transparent)]
        pub struct $name(pub GrpoConfig);

        impl super::AlgorithmConfig for $name {
            fn objective(&self) -> Box<dyn super::Objective> {
                Box::new(Grpo::new(self.0.over(&DEFAULTS)))
            }

            fn resolved(&self) -> Self {
                $name(self.0.over(&DEFAULTS).into())
            }

            fn fit(&mut self, max_new_tokens: usize) {
                self.0.fit(max_new_tokens);
            }

            fn validate(&self) -> Result<(), String> {
                self.0.over(&DEFAULTS).validate()
            }
        }
    };
}

pub(super) use variant;

impl AlgorithmConfig for GrpoConfig {
    fn objective(&self) -> Box<dyn Objective> {
        Box::new(Grpo::new(self.over(&GrpoOptions::TRL)))
    }

    fn resolved(&self) -> Self {
        self.over(&GrpoOptions::TRL).into()
    }

    fn fit(&mut self, max_new_tokens: usize) {
        self.max_completion_length.get_or_insert(max_new_tokens);
    }

    fn validate(&self) -> Result<(), String> {
        self.over(&GrpoOptions::TRL).validate()
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Grpo {
    options: GrpoOptions,
}

impl Grpo {
    /// The objective of these options.
    pub fn new(options: GrpoOptions) -> Self {
        Grpo { options }
    }

    fn overlong(&self) -> Overlong {
        Overlong {
            buffer: self.options.overlong_buffer,
            penalty: self.options.overlong_penalty,
            limit: self.options.max_completion_length.unwrap_or(0),
        }
    }

    /// What the rewards of a tree are divided by: a function of the tree, given the batch.
    fn deviations(&self, batch: &MicroBatch<'_>) -> impl Fn(&Tree) -> f64 {
        let overlong = self.overlong();
        let of_batch = (self.options.scale_rewards == ScaleRewards::Batch).then(|| {
            let rewards: Vec<f64> = batch.batch.iter().flat_map(|tree| overlong.rewards(tree)).collect();
            deviation(&rewards)
        });
        move |tree| of_batch.unwrap_or_else(|| deviation(&overlong.rewards(tree)))
    }

    /// One advantage a response.
    fn advantages(&self, batch: &MicroBatch<'_>, deviation_of: impl Fn(&Tree) -> f64) -> Vec<f64> {
        let of_tree = |tree: &&Tree| {
            let advantages = centred(&self.overlong().rewards(tree));
            match self.options.scale_rewards {
                ScaleRewards::None => advantages,
                ScaleRewards::Group | ScaleRewards::Batch => scaled(&advantages, deviation_of(tree)),
            }
        };
        batch.trees.iter().flat_map(of_tree).collect()
    }

    /// The loss of each token before the KL, and the metrics of its clipping.
    fn surrogate(
        &self,
        logps: &Tensor,
        batch: &MicroBatch<'_>,
        mask: &LossMask,
        (log_ratios, advantages): (&Tensor, &Tensor),
        metrics: &mut Metrics,
    ) -> Tensor {
        let options = &self.options;
        let high = options.epsilon_high.unwrap_or(options.epsilon);
        let is_token = options.importance_sampling_level == ImportanceLevel::Token;
        // A sequence's ratio stands once, and its loss is spread over its tokens.
        let spread = |tensor: Tensor| if is_token { tensor } else { batch.spread(&tensor) };
        let ratios = log_ratios.exp();
        record_ratios(metrics, &ratios);
        let beside = if is_token { batch.spread(advantages) } else { advantages.shallow_clone() };
        if options.loss_type == LossType::Cispo {
            let clipped = ratios.gt(high).logical_and(&beside.gt(0.0)).to_kind(Kind::Float).detach();
            let weights = if is_token { mask.per_token(batch, logps) } else { clipped.ones_like() };
            let sum = |tensor: &Tensor| tensor.sum(Kind::Double).double_value(&[]);
            metrics.add("cispo_clip_ratio", sum(&(&clipped * &weights)), sum(&weights));
            return -spread(ratios.clamp_max(high).detach() * beside) * logps;
        }
        let clip = Clip { low: options.epsilon, high, dual: options.delta };
        let (losses, clipped) = clip.loss(&ratios, &beside);
        if is_token {
            clipped.token_metrics(metrics, batch, mask);
        } else {
            clipped.sequence_metrics(metrics);
        }
        spread(losses)
    }
}

impl Objective for Grpo {
    fn needs(&self) -> Needs {
        Needs {
            reference: self.options.beta != 0.0,
            old: self.options.importance_sampling_mode != CorrectionMode::None,
            ..Needs::of(WholeGroup { least: 2, drop_equal: self.options.drop_equal_rewards })
        }
    }

    fn loss(&self, statistics: &TokenStatistics, batch: &MicroBatch<'_>) -> Loss {
        let options = &self.options;
        let logps = &statistics.logps;
        let mut metrics = Metrics::default();
        let mask = LossMask { skip_truncated: options.mask_truncated_completions };
        let kept = mask.per_token(batch, logps);
        let old = batch.per_token(logps, |branch| branch.old_policy_logps().to_vec());
        let log_ratios = match options.importance_sampling_level {
            ImportanceLevel::Token => logps - old,
            ImportanceLevel::Sequence => {
                let lengths: Vec<f64> =
                    mask.lengths(batch).into_iter().map(|length| length.max(1.0)).collect();
                batch.sum_per_response(&((logps - old) * &kept)) / batch.floats(logps, &lengths)
            }
        };
        let deviation_of = self.deviations(batch);
        let advantages = batch.floats(logps, &self.advantages(batch, &deviation_of));
        let mut losses = self.surrogate(logps, batch, &mask, (&log_ratios, &advantages), &mut metrics);
        let correction = Correction {
            mode: options.importance_sampling_mode,
            min: options.importance_sampling_clip_min,
            max: Some(options.importance_sampling_clip_max),
        };
        if let Some(weights) = correction.weights(batch, &mask, logps, &mut metrics) {
            losses *= weights;
        }
        if options.beta != 0.0 {
            let reference = batch.per_token(logps, |branch| branch.reference_logps.clone());
            let plain = options.kl_estimator.per_token(logps, &reference);
            mask.mean(&mut metrics, options.kl_estimator.metric(), &plain, batch);
            let kl = match (options.use_bias_correction_kl, options.importance_sampling_level) {
                (false, _) => plain,
                (true, ImportanceLevel::Token) => plain * log_ratios.exp(),
                (true, ImportanceLevel::Sequence) => plain * batch.spread(&log_ratios.exp()),
            };
            if options.kl_estimator == KlEstimator::K3 {
                mask.mean(&mut metrics, "kl", &kl, batch);
            }
            losses += kl * options.beta;
        }
        let aggregation = match options.loss_type {
            LossType::Grpo => Aggregation::Sequence,
            LossType::DrGrpo => Aggregation::Constant,
            LossType::Dapo | LossType::Bnpo | LossType::Cispo => Aggregation::Token,
        };
        let length = options.max_completion_length.unwrap_or(1);
        let mut value = aggregate(&losses, batch, &mask, aggregation, length);
        if options.entropy_coef != 0.0 {
            add_loss(&mut metrics, batch, "policy_loss", value.double_value(&[]));
            let bonus = aggregate(&statistics.entropies, batch, &mask, Aggregation::Token, length);
            value -= bonus * options.entropy_coef;
        }

        add_loss(&mut metrics, batch, "loss", value.double_value(&[]));
        mask.mean(&mut metrics, "entropy", &statistics.entropies, batch);
        reward_metrics(&mut metrics, batch, deviation_of);
        Loss { value, metrics }
    }
}
