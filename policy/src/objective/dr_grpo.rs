//! GRPO done right: without its two biases (Liu et al., "Understanding R1-Zero-Like Training", 2025).
//!
//! A_i = r_i − mean(r),  L = − (1 / (N · L_max)) Σ_i Σ_t min(ρ A_i, clip(ρ, 1 − ε, 1 + ε) A_i)
//!
//! over the N sequences of the batch. Dividing by the group's deviation favours prompts that are almost always, or almost
//! never, answered well; dividing by a sequence's own length favours short good and long bad answers. The constant L_max
//! is the token limit (`max_completion_length`).

use super::grpo::{LossType, ScaleRewards, variant};

variant! {
    /// Dr. GRPO's options: GRPO's, with the paper's values as defaults.
    DrGrpoConfig { loss_type: LossType::DrGrpo, scale_rewards: ScaleRewards::None }
}
