//! Clipped importance-sampling policy optimisation: the weight is clipped, not the update (MiniMax, "MiniMax-M1", 2025,
//! eq. 4 and 5).
//!
//! L = − (1 / Σ|y_i|) Σ_i Σ_t sg[min(ρ_t, ε_high)] A_i log π(y_t | x, y_<t)
//!
//! with sg for "no gradient". PPO's clipping takes the gradient from tokens that moved far, which are often the rare ones
//! that a train of thought turns on; here every token keeps it. ε_high is the weight's cap itself: 5 (ScaleRL: Khatri et
//! al., 2025, which TRL recommends).

use super::grpo::{LossType, variant};

variant! {
    /// CISPO's options: GRPO's, with TRL's recommendation as the default.
    CispoConfig { loss_type: LossType::Cispo, epsilon_high: Some(5.0) }
}
