//! Supervised fine-tuning: the mean negative log-likelihood of the response tokens.
//!
//! L = − (1 / Σ|y|) Σ_(x,y) Σ_t log π(y_t | x, y_<t), over the best of n samples of each prompt: the
//! SFT half of the Llama 3 recipe ("The Llama 3 Herd of Models", 2024, §4.1.3), also known as RAFT
//! (Dong et al., 2023). The prompt carries no loss.

use arriero_buffers::selection::BestOfN;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Kind;

use super::{AlgorithmConfig, Loss, Metrics, MicroBatch, Needs, Objective, TokenStatistics};

/// SFT has no options of its own.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SftConfig {}

impl AlgorithmConfig for SftConfig {
    fn objective(&self) -> Box<dyn Objective> {
        Box::new(Sft)
    }

    fn validate(&self) -> Result<(), String> {
        Ok(())
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Sft;

impl Objective for Sft {
    fn needs(&self) -> Needs {
        Needs::of(BestOfN)
    }

    fn loss(&self, statistics: &TokenStatistics, batch: &MicroBatch<'_>) -> Loss {
        let value = -statistics.logps.sum(Kind::Float) / batch.totals.tokens as f64;
        let mut metrics = Metrics::default();
        metrics.add_entries("loss", &(-&statistics.logps).detach());
        metrics.add_entries("entropy", &statistics.entropies);
        metrics.add_entries("mean_token_accuracy", &statistics.top1);
        Loss { value, metrics }
    }
}
