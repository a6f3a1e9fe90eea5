//! Group sequence policy optimisation: GRPO whose unit is the sequence (Zheng et al., "Group Sequence Policy
//! Optimization", 2025, eq. 5 and 7).
//!
//! s_i = exp( (1 / |y_i|) Σ_t log ρ_t ),  L = − (1 / N) Σ_i min(s_i A_i, clip(s_i, 1 − ε, 1 + ε_high) A_i)
//!
//! A reward is given to a sequence, and so is the ratio. Being a geometric mean over many tokens it stays much closer to 1
//! than a token's, and so do its bounds: ε = 3e-4, ε_high = 4e-4 (the paper, §5.1). That is less than a sampler in bf16
//! rounds by, so π_old is the trainer's own, with the truncated correction of each token for the sampler's.

use super::grpo::{ImportanceLevel, LossType, variant};
use super::terms::correction::CorrectionMode;

variant! {
    /// GSPO's options: GRPO's, with the paper's values as defaults.
    GspoConfig {
        loss_type: LossType::Grpo,
        epsilon: 3e-4,
        epsilon_high: Some(4e-4),
        importance_sampling_level: ImportanceLevel::Sequence,
        importance_sampling_mode: CorrectionMode::TokenTruncate,
    }
}
