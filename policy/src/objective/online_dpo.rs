//! Online DPO: DPO on pairs that the policy has just sampled and the reward has ranked.
//!
//! The loss is [`super::dpo`]'s, on the best against the worst of a prompt's fresh samples:
//!
//! L = − (1 / pairs) Σ log σ(β [log π/π_ref (y⁺) − log π/π_ref (y⁻)])
//!
//! (Guo et al., "Direct Language Model Alignment from Online AI Feedback", 2024, which takes the better of two samples.)
//! What makes it online is where the pairs come from: give it many `rounds`, with a `per_round` of the `batch_size`, and
//! every step learns from samples of the weights before it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{AlgorithmConfig, DpoConfig, Objective};

/// DPO's options, with its defaults (β 0.1 and the sigmoid loss are also what TRL's online DPO has).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct OnlineDpoConfig(pub DpoConfig);

impl AlgorithmConfig for OnlineDpoConfig {
    fn objective(&self) -> Box<dyn Objective> {
        self.0.objective()
    }

    fn resolved(&self) -> Self {
        OnlineDpoConfig(self.0.resolved())
    }

    fn fit(&mut self, max_new_tokens: usize) {
        self.0.fit(max_new_tokens);
    }

    fn validate(&self) -> Result<(), String> {
        self.0.validate()
    }

    fn is_online(&self) -> bool {
        true
    }
}
