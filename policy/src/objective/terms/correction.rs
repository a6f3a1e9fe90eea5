//! Correction for a generator whose probabilities are not the trainer's.
//!
//! Samples come from the generator's μ, which rounds otherwise or is some versions old; the ratio of the surrogate is
//! taken against the trainer's own π_old. Each token's loss is then weighted by w = π_old / μ, of the token or of the
//! whole sequence, and w is kept from exploding: cut to the bounds (truncated importance sampling; Yao et al., "Your
//! Efficient RL Framework Secretly Brings You Off-Policy RL Training", 2025) or set to 0 outside of them (masked).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::aggregate::LossMask;
use crate::objective::{Metrics, MicroBatch};

/// Whose ratio is taken, and what happens to one that is out of bounds. TRL's `vllm_importance_sampling_mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CorrectionMode {
    /// No correction: π_old is taken to be what the sampler reported.
    None,
    /// Of each token; cut to the bounds.
    TokenTruncate,
    /// Of each token; 0 outside of the bounds.
    TokenMask,
    /// Of the sequence; cut to the bounds.
    SequenceTruncate,
    /// Of the sequence; 0 outside of the bounds.
    SequenceMask,
}

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Correction {
    /// How.
    pub mode: CorrectionMode,
    /// The least ratio.
    pub min: Option<f64>,
    /// The highest ratio: the cap.
    pub max: Option<f64>,
}

/// The weights of a micro-batch, and what there is to log of them.
#[derive(Debug)]
pub struct Weights {
    /// Of each token: `[response tokens]`.
    pub per_token: Tensor,
    /// Of the tokens, or of the responses.
    ratios: Tensor,
    is_sequence: bool,
    /// |log π_old − log μ|: `[response tokens]`.
    differences: Tensor,
    /// 1 for tokens that carry loss, else 0: `[response tokens]`.
    kept: Tensor,
}

impl Correction {
    /// The weights; `None` where nothing is corrected. Needs [`Branch::old_logps`](arriero_buffers::Branch::old_logps).
    pub fn weights(&self, batch: &MicroBatch<'_>, mask: &LossMask, like: &Tensor) -> Option<Weights> {
        use CorrectionMode as Mode;
        if self.mode == Mode::None {
            return None;
        }
        let kept = mask.per_token(batch, like);
        let difference = batch.per_token(like, |branch| {
            branch.old_logps.iter().zip(&branch.behaviour_logps).map(|(old, sampled)| old - sampled).collect()
        }) * &kept;
        let is_sequence = matches!(self.mode, Mode::SequenceTruncate | Mode::SequenceMask);
        let ratios =
            if is_sequence { batch.sum_per_response(&difference) } else { difference.shallow_clone() };
        let ratios = ratios.exp();
        let (min, max) = (self.min.unwrap_or(f64::NEG_INFINITY), self.max.unwrap_or(f64::INFINITY));
        let ratios = match self.mode {
            Mode::TokenTruncate | Mode::SequenceTruncate => ratios.clamp(min, max),
            _ => {
                let outside = ratios.lt(min).logical_or(&ratios.gt(max));
                ratios.masked_fill(&outside, 0.0)
            }
        };
        let per_token = if is_sequence { batch.spread(&ratios) } else { ratios.shallow_clone() };
        Some(Weights { per_token, ratios, is_sequence, differences: difference.abs(), kept })
    }
}

impl Weights {
    /// TRL's `sampling/…`.
    pub fn record(&self, metrics: &mut Metrics) {
        let host = crate::weights::to_host;
        let kept = host(&self.kept);
        let of_tokens = |tensor: &Tensor| -> Vec<f64> {
            let entries = host(tensor).into_iter().zip(&kept).filter(|(_, kept)| **kept > 0.0);
            entries.map(|(entry, _)| f64::from(entry)).collect()
        };
        let ratios = match self.is_sequence {
            true => host(&self.ratios).into_iter().map(f64::from).collect(),
            false => of_tokens(&self.ratios),
        };
        for ratio in ratios {
            metrics.lower("sampling/importance_sampling_ratio/min", ratio);
            metrics.add("sampling/importance_sampling_ratio/mean", ratio, 1.0);
            metrics.raise("sampling/importance_sampling_ratio/max", ratio);
        }
        for difference in of_tokens(&self.differences) {
            metrics.add("sampling/sampling_logp_difference/mean", difference, 1.0);
            metrics.raise("sampling/sampling_logp_difference/max", difference);
        }
    }
}
