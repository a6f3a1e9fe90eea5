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

mod options;

use arriero_buffers::Tree;
use arriero_buffers::selection::WholeGroup;
use tch::Tensor;

use super::terms::advantages::{centred, deviation, scaled};
use super::terms::aggregate::{Aggregation, LossMask, aggregate};
use super::terms::clip::{self, Clip, Clipped};
use super::terms::correction::{self, Correction, CorrectionMode};
use super::terms::group::{Overlong, reward_metrics};
use super::terms::kl::KlEstimator;
use super::{Loss, Metrics, MicroBatch, Needs, Objective, TokenStatistics};

pub(super) use options::variant;
pub use options::{GrpoConfig, GrpoGiven, ImportanceLevel, LossType, ScaleRewards};

/// See the module.
#[derive(Debug, Clone)]
pub struct Grpo {
    options: GrpoConfig,
}

/// The terms of a micro-batch's loss, as far as they are logged.
struct Terms {
    clipped: Clipped,
    correction: Option<correction::Weights>,
    kl: Option<Kl>,
    /// The loss without the entropy bonus.
    policy_loss: Tensor,
}

/// KL of each token to the reference: as it is estimated, and as it stands in the loss.
struct Kl {
    plain: Tensor,
    paid: Tensor,
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
        let GrpoConfig { beta, entropy_coef, .. } = self.options;
        let logps = &statistics.logps;
        let deviation_of = self.deviations(batch);
        let log_ratios = self.log_ratios(logps, batch);
        let advantages = batch.floats(logps, &self.advantages(batch, &deviation_of));

        let (mut losses, clipped) = self.surrogate(logps, &log_ratios, &advantages, batch);
        let correction = self.correction().weights(batch, &self.mask(), logps);
        if let Some(weights) = &correction {
            losses *= &weights.per_token;
        }
        let kl = (beta != 0.0).then(|| self.kl(logps, &log_ratios, batch));
        if let Some(kl) = &kl {
            losses += &kl.paid * beta;
        }
        let policy_loss = self.aggregate(&losses, self.aggregation(), batch);
        let value = match entropy_coef {
            0.0 => policy_loss.shallow_clone(),
            weight => {
                &policy_loss - self.aggregate(&statistics.entropies, Aggregation::Token, batch) * weight
            }
        };

        let terms = Terms { clipped, correction, kl, policy_loss };
        let mut metrics = self.metrics(&terms, &value, statistics, batch);
        reward_metrics(&mut metrics, batch, deviation_of);
        Loss { value, metrics }
    }
}

impl Grpo {
    fn mask(&self) -> LossMask {
        LossMask { skip_truncated: self.options.mask_truncated_completions }
    }

    fn is_of_tokens(&self) -> bool {
        self.options.importance_sampling_level == ImportanceLevel::Token
    }

    fn overlong(&self) -> Overlong {
        Overlong {
            buffer: self.options.overlong_buffer,
            penalty: self.options.overlong_penalty,
            limit: self.options.max_completion_length.unwrap_or(0),
        }
    }

    fn correction(&self) -> Correction {
        Correction {
            mode: self.options.importance_sampling_mode,
            min: self.options.importance_sampling_clip_min,
            max: Some(self.options.importance_sampling_clip_max),
        }
    }

    fn aggregation(&self) -> Aggregation {
        match self.options.loss_type {
            LossType::Grpo => Aggregation::Sequence,
            LossType::DrGrpo => Aggregation::Constant,
            LossType::Dapo | LossType::Bnpo | LossType::Cispo => Aggregation::Token,
        }
    }

    fn aggregate(&self, per_token: &Tensor, aggregation: Aggregation, batch: &MicroBatch<'_>) -> Tensor {
        let length = self.options.max_completion_length.unwrap_or(1);
        aggregate(per_token, batch, &self.mask(), aggregation, length)
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

    /// log ρ of each token, or of each sequence.
    fn log_ratios(&self, logps: &Tensor, batch: &MicroBatch<'_>) -> Tensor {
        let of_tokens = logps - batch.old_logps(logps);
        if self.is_of_tokens() {
            return of_tokens;
        }
        let mask = self.mask();
        let lengths: Vec<f64> = mask.lengths(batch).into_iter().map(|length| length.max(1.0)).collect();
        batch.sum_per_response(&(of_tokens * mask.per_token(batch, logps))) / batch.floats(logps, &lengths)
    }

    /// The surrogate's loss of each token, and where its gradient is cut. `advantages` are of the responses.
    fn surrogate(
        &self,
        logps: &Tensor,
        log_ratios: &Tensor,
        advantages: &Tensor,
        batch: &MicroBatch<'_>,
    ) -> (Tensor, Clipped) {
        let (low, high) = (self.options.epsilon, self.options.high());
        // A sequence's ratio stands once, and its loss is spread over its tokens.
        let spread = |tensor: Tensor| if self.is_of_tokens() { tensor } else { batch.spread(&tensor) };
        let advantages =
            if self.is_of_tokens() { batch.spread(advantages) } else { advantages.shallow_clone() };
        let ratios = log_ratios.exp();
        if self.options.loss_type == LossType::Cispo {
            let (weights, clipped) = clip::capped(&ratios, &advantages, high);
            return (-spread(weights * advantages) * logps, clipped);
        }
        let (losses, clipped) = Clip { low, high, dual: self.options.delta }.loss(&ratios, &advantages);
        (spread(losses), clipped)
    }

    /// The KL of each token under the policy that learns.
    fn kl(&self, logps: &Tensor, log_ratios: &Tensor, batch: &MicroBatch<'_>) -> Kl {
        let plain = self.options.kl_estimator.per_token(logps, &batch.reference_logps(logps));
        let paid = match (self.options.use_bias_correction_kl, self.is_of_tokens()) {
            (false, _) => plain.shallow_clone(),
            (true, true) => &plain * log_ratios.exp(),
            (true, false) => &plain * batch.spread(&log_ratios.exp()),
        };
        Kl { plain, paid }
    }

    fn metrics(
        &self,
        terms: &Terms,
        value: &Tensor,
        statistics: &TokenStatistics,
        batch: &MicroBatch<'_>,
    ) -> Metrics {
        let Terms { clipped, correction, kl, policy_loss } = terms;
        let mut metrics = Metrics::default();
        let mask = self.mask();
        let logps = &statistics.logps;
        match (self.options.loss_type, self.is_of_tokens()) {
            (LossType::Cispo, true) => clipped.capped_metrics(&mut metrics, &mask.per_token(batch, logps)),
            (LossType::Cispo, false) => {
                let each = vec![1.0; batch.responses().count()];
                clipped.capped_metrics(&mut metrics, &batch.floats(logps, &each));
            }
            (_, true) => clipped.token_metrics(&mut metrics, batch, &mask),
            (_, false) => clipped.sequence_metrics(&mut metrics),
        }
        if let Some(weights) = correction {
            weights.record(&mut metrics);
        }
        if let Some(kl) = kl {
            let estimator = self.options.kl_estimator;
            mask.mean(&mut metrics, estimator.metric(), &kl.plain, batch);
            if estimator == KlEstimator::K3 {
                mask.mean(&mut metrics, "kl", &kl.paid, batch);
            }
        }
        if self.options.entropy_coef != 0.0 {
            metrics.add_part("policy_loss", policy_loss, batch);
        }
        metrics.add_part("loss", value, batch);
        mask.mean(&mut metrics, "entropy", &statistics.entropies, batch);
        metrics
    }
}
