//! Whether a completion contains a text: the simplest reward, good for trying out a training loop.

use std::collections::BTreeMap;

use arriero_buffers::{Group, Score};
use serde::{Deserialize, Serialize};

use crate::error::RewardError;
use crate::scorer::{Scorer, ScorerConfig};

/// The options of the `contains` reward.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ContainsConfig {
    /// What a completion must contain, anywhere. No default: it must be given.
    pub text: String,
    /// Whether capitals must agree. Default false.
    pub case_sensitive: bool,
}

impl ScorerConfig for ContainsConfig {
    fn validate(&self) -> Result<(), String> {
        if self.text.is_empty() {
            return Err("text is \"\", but must have at least one character".to_string());
        }
        Ok(())
    }

    fn scorer(&self) -> Result<Box<dyn Scorer>, RewardError> {
        Ok(Box::new(ContainsScorer { config: self.clone() }))
    }
}

/// Reward 1 for a completion that contains the text, else 0.
pub(super) struct ContainsScorer {
    config: ContainsConfig,
}

impl ContainsScorer {
    fn found_in(&self, text: &str) -> bool {
        let ContainsConfig { text: wanted, case_sensitive } = &self.config;
        if *case_sensitive {
            text.contains(wanted)
        } else {
            text.to_lowercase().contains(&wanted.to_lowercase())
        }
    }
}

impl Scorer for ContainsScorer {
    fn name(&self) -> &'static str {
        "contains"
    }

    fn score(&mut self, group: &Group) -> Result<Vec<Score>, RewardError> {
        let score = |text: &str| {
            let reward = f32::from(u8::from(self.found_in(text)));
            Score { reward, components: BTreeMap::from([("contains".to_string(), reward)]) }
        };
        Ok(group.completions.iter().map(|completion| score(&completion.text)).collect())
    }
}

#[cfg(test)]
mod tests {
    use arriero_buffers::Finish;

    use super::*;

    fn rewards(text: &str, case_sensitive: bool) -> Vec<f32> {
        let mut scorer = ContainsScorer { config: ContainsConfig { text: text.into(), case_sensitive } };
        let texts = ["well, Yes!", "YES", "yesterday", "no", ""].map(|text| (text, Finish::EndOfTurn));
        let scores = scorer.score(&super::super::group(serde_json::Value::Null, &texts)).expect("scores");
        assert!(scores.iter().all(|score| score.components["contains"] == score.reward));
        scores.iter().map(|score| score.reward).collect()
    }

    #[test]
    fn the_text_may_stand_anywhere() {
        assert_eq!(rewards("yes", false), [1.0, 1.0, 1.0, 0.0, 0.0]);
        assert_eq!(rewards("Yes", true), [1.0, 0.0, 0.0, 0.0, 0.0]);
    }
}
