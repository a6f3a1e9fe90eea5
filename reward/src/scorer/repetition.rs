//! A penalty for saying the same again.

use std::collections::HashSet;

use arriero_buffers::{Completion, Prompt};
use serde::{Deserialize, Serialize};

use super::per_completion::{PerCompletion, score};
use super::{Scorer, ScorerConfig};
use crate::error::RewardError;

/// The options of the `repetition` reward. Source: the n-gram penalty of Demystifying Long
/// Chain-of-Thought (Yeo et al., arXiv:2502.03373), as a share.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RepetitionConfig {
    /// Words in an n-gram, at least 1. Default 3.
    pub ngram: usize,
    /// The penalty if everything is repeated; at least 0. Default 1.
    pub penalty: f64,
}

impl Default for RepetitionConfig {
    fn default() -> Self {
        RepetitionConfig { ngram: 3, penalty: 1.0 }
    }
}

impl ScorerConfig for RepetitionConfig {
    fn validate(&self) -> Result<(), String> {
        if self.ngram == 0 {
            return Err("ngram is 0, but must be at least 1".to_string());
        }
        if !self.penalty.is_finite() || self.penalty < 0.0 {
            return Err(format!("penalty is {}, but must be a number of at least 0", self.penalty));
        }
        Ok(())
    }

    /// Reward −penalty × the share of n-grams that stood there before; 0 for fewer words than n.
    fn scorer(&self) -> Result<Box<dyn Scorer>, RewardError> {
        let RepetitionConfig { ngram, penalty } = *self;
        Ok(Box::new(PerCompletion {
            name: "repetition",
            score: move |_: &Prompt, completion: &Completion| {
                let share = repeated_share(&completion.text, ngram);
                Ok(score(0.0 - penalty * share, [("repetition", share)]))
            },
        }))
    }
}

/// The share of n-grams of words, whatever their case, that are not the first of their kind.
fn repeated_share(text: &str, ngram: usize) -> f64 {
    let text = text.to_lowercase();
    let words: Vec<&str> = text.split_whitespace().collect();
    let total = (words.len() + 1).saturating_sub(ngram);
    if total == 0 {
        return 0.0;
    }
    let distinct: HashSet<&[&str]> = words.windows(ngram).collect();
    1.0 - distinct.len() as f64 / total as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_counts_what_was_there_before() {
        for (text, ngram, expected) in [
            ("", 1, 0.0),
            ("a b", 3, 0.0),
            ("a b c", 3, 0.0),
            // "a b c", "b c a", "c a b", then "A b c" again.
            ("a b c A b c", 3, 0.25),
            ("a a a a", 1, 0.75),
            ("a a a a", 2, 2.0 / 3.0),
        ] {
            assert!((repeated_share(text, ngram) - expected).abs() < 1e-12, "{text:?}");
        }
    }

    #[test]
    fn the_reward_is_a_penalty() {
        let group =
            super::super::group(serde_json::Value::Null, &[("a a a a", arriero_buffers::Finish::Length)]);
        let config = RepetitionConfig { ngram: 1, penalty: 2.0 };
        assert_eq!(config.scorer().expect("valid").score(&group).expect("scores")[0].reward, -1.5);
        for config in
            [RepetitionConfig { ngram: 0, penalty: 1.0 }, RepetitionConfig { ngram: 1, penalty: -1.0 }]
        {
            assert!(config.validate().is_err(), "{config:?}");
        }
    }
}
