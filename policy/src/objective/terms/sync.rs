//! A reference that follows the policy: TR-DPO's soft update (Gorbatovski et al., "Learn Your Reference Model for Real Good
//! Alignment", 2024, eq. 4), and its hard one with α = 1.
//!
//! π_ref ← α π_θ + (1 − α) π_ref, weight by weight, behind every τ-th step.

use crate::objective::ReferenceSync;

/// TRL's `ref_model_mixup_alpha`, where nothing else is given.
pub const ALPHA: f64 = 0.6;

/// TRL's `ref_model_sync_steps`, where nothing else is given.
pub const STEPS: usize = 512;

/// What three options amount to.
pub fn of(is_on: bool, alpha: f64, every: usize) -> Option<ReferenceSync> {
    is_on.then_some(ReferenceSync { alpha, every })
}

/// Checks the options' ranges.
///
/// # Errors
/// As [`AlgorithmConfig::validate`](crate::objective::AlgorithmConfig::validate).
pub fn check(alpha: f64, every: usize) -> Result<(), String> {
    if !(alpha > 0.0 && alpha <= 1.0) {
        return Err(format!("ref_model_mixup_alpha is {alpha}; it must be above 0 and at most 1"));
    }
    if every == 0 {
        return Err("ref_model_sync_steps is 0; it must be at least 1".to_string());
    }
    Ok(())
}
