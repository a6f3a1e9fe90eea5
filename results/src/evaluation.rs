//! What a version of the policy did with the held-out prompts.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::outcome::Outcome;
use crate::report::Report;

/// One held-out prompt's outcome.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PromptOutcome {
    /// The prompt.
    pub prompt_id: u64,
    /// Its checkable instructions.
    pub instructions: usize,
    /// Those that the response follows.
    pub followed: usize,
    /// The scorer's reward; no number if it could not give one.
    #[serde(with = "crate::json_number::f32_or_nan")]
    pub reward: f32,
    /// Tokens of the response.
    pub tokens: usize,
    /// The response.
    pub text: String,
}

/// A version's outcomes on the held-out prompts, in the order of the prompts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// The version of the weights.
    pub version: u32,
    /// One outcome a prompt.
    pub outcomes: Vec<PromptOutcome>,
    /// Mean KL(policy ‖ reference) of the next-token distributions over the response tokens of the
    /// first `evaluation.kl_prompts` prompts, exact over the vocabulary, in nats a token.
    pub kl: f64,
    /// Tokens sampled.
    pub tokens: u64,
    /// Time it took, suites included.
    pub seconds: f64,
    /// The suites, in the order of the experiment.
    pub suites: Vec<SuiteResult>,
}

/// What came of a suite.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SuiteResult {
    /// Its figures.
    pub report: Report,
    /// What came of each item.
    pub outcomes: Arc<Vec<Outcome>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_evaluation_comes_back_from_json_with_rewards_that_are_none() {
        let outcome = |reward| PromptOutcome {
            prompt_id: u64::MAX,
            instructions: 2,
            followed: 1,
            reward,
            tokens: 3,
            text: "4\0!".to_string(),
        };
        let evaluation = Evaluation {
            version: 7,
            outcomes: vec![outcome(0.1), outcome(f32::NAN)],
            kl: 0.1,
            ..Evaluation::default()
        };
        let written = serde_json::to_string(&evaluation).expect("it serialises");
        let read: Evaluation = serde_json::from_str(&written).expect("it reads");
        assert_eq!(read.outcomes[0], evaluation.outcomes[0]);
        assert!(read.outcomes[1].reward.is_nan());
        assert_eq!((read.version, read.kl), (7, 0.1));
    }
}
