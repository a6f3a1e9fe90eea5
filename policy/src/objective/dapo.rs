//! Decoupled clip and dynamic sampling policy optimisation: GRPO with four changes (Yu et al., "DAPO", 2025).
//!
//! L = − (1 / Σ|y_i|) Σ_i Σ_t min(ρ A_i, clip(ρ, 1 − 0.2, 1 + 0.28) A_i)
//!
//! Clip-higher (ε_high > ε) leaves improbable tokens room to rise; the mean runs over tokens, so that long answers weigh
//! what they are worth; groups without signal are dropped; answers near the token limit lose reward step by step over
//! the last fifth of it (the paper: 4096 of 20480). The paper fills a batch up with further prompts in place of dropped
//! groups; here the step has fewer.

use super::grpo::variant;

variant! {
    /// DAPO's options: GRPO's, with the paper's values as defaults.
    DapoConfig { epsilon_high: Some(0.28), drop_equal_rewards: true, overlong_buffer: 0.2 }
}
