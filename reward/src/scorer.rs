//! What gives completions their rewards.
//!
//! - [`constraints`]: the share of the prompt's verifiable instructions that a completion follows;
//! - [`contains`]: whether a completion contains a text.

pub mod constraints;
pub mod contains;

use arriero_buffers::{Group, Prompt, Score};
use serde::{Deserialize, Serialize};
use serde_aux::serde_introspection::serde_introspect;

use crate::error::RewardError;
use constraints::{ConstraintsConfig, ConstraintsScorer};
use contains::{ContainsConfig, ContainsScorer};

/// Gives each completion of a group its reward.
pub trait Scorer: Send {
    /// The scorer's name in configurations and metrics.
    fn name(&self) -> &'static str;

    /// One score a completion, in the order of the completions.
    ///
    /// # Errors
    /// If the prompt lacks what the scorer needs.
    fn score(&mut self, group: &Group) -> Result<Vec<Score>, RewardError>;
}

/// Which scorer, and its options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum RewardConfig {
    /// The share of the prompt's constraints that a completion follows.
    Constraints(ConstraintsConfig),
    /// Whether a completion contains a text.
    Contains(ContainsConfig),
}

impl Default for RewardConfig {
    fn default() -> Self {
        RewardConfig::Constraints(ConstraintsConfig::default())
    }
}

impl RewardConfig {
    /// Every value of `kind`.
    pub const KINDS: &[&str] = &["constraints", "contains"];

    /// The value of `kind`.
    pub fn kind(&self) -> &'static str {
        match self {
            RewardConfig::Constraints(_) => "constraints",
            RewardConfig::Contains(_) => "contains",
        }
    }

    /// Names of the options of a `kind`; none for an unknown one.
    pub fn option_names(kind: &str) -> &'static [&'static str] {
        match kind {
            "constraints" => serde_introspect::<ConstraintsConfig>(),
            "contains" => serde_introspect::<ContainsConfig>(),
            _ => &[],
        }
    }

    /// Checks the options.
    ///
    /// # Errors
    /// With a sentence that names the option, its value and its range.
    pub fn validate(&self) -> Result<(), String> {
        match self {
            RewardConfig::Constraints(config) => config.validate(),
            RewardConfig::Contains(config) => config.validate(),
        }
    }

    /// Checks that a prompt has what this reward needs, before anything is sampled for it.
    ///
    /// # Errors
    /// If its `checks` are no valid constraints, or there are none and the reward is `constraints`.
    pub fn check_prompt(&self, prompt: &Prompt) -> Result<(), RewardError> {
        let verdicts = constraints::verdicts(prompt, "")?;
        match self {
            RewardConfig::Constraints(_) if verdicts.is_empty() => Err(RewardError::NoConstraints(prompt.id)),
            _ => Ok(()),
        }
    }

    /// The scorer.
    ///
    /// # Errors
    /// If the options are not valid.
    pub fn build(&self) -> Result<Box<dyn Scorer>, RewardError> {
        self.validate().map_err(RewardError::Config)?;
        Ok(match self {
            RewardConfig::Constraints(config) => Box::new(ConstraintsScorer::new(config.clone())),
            RewardConfig::Contains(config) => Box::new(ContainsScorer::new(config.clone())),
        })
    }
}

/// A group for tests: a prompt with `checks`, and a completion for each text and ending.
#[cfg(test)]
fn group(checks: serde_json::Value, texts: &[(&str, arriero_buffers::Finish)]) -> Group {
    let completion =
        |(sample, &(text, finish)): (usize, &(&str, arriero_buffers::Finish))| arriero_buffers::Completion {
            sample: sample as u32,
            tokens: vec![1],
            logps: vec![0.0],
            sampled_logps: vec![0.0],
            weight_versions: vec![0],
            text: text.to_string(),
            finish,
        };
    let messages = vec![arriero_buffers::Message::user("hi")];
    Group {
        prompt: std::sync::Arc::new(arriero_buffers::Prompt { id: 7, messages, checks }),
        prompt_tokens: vec![1],
        completions: texts.iter().enumerate().map(completion).collect(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_kind_is_listed_and_round_trips() {
        let contains = ContainsConfig { text: "yes".into(), case_sensitive: true };
        let configs = [RewardConfig::default(), RewardConfig::Contains(contains)];
        assert_eq!(configs.each_ref().map(RewardConfig::kind), RewardConfig::KINDS);
        for config in configs {
            let value = serde_json::to_value(&config).expect("plain data");
            assert_eq!(value["kind"], config.kind());
            assert_eq!(serde_json::from_value::<RewardConfig>(value).expect("its own form"), config);
            assert_eq!(config.build().expect("it is valid").name(), config.kind());
        }
    }

    #[test]
    fn options_have_defaults_and_unknown_ones_are_refused() {
        let read = |value| serde_json::from_value::<RewardConfig>(value);
        assert_eq!(read(json!({"kind": "constraints"})).expect("all default"), RewardConfig::default());
        for wrong in [
            json!({}),
            json!({"kind": "constraint"}),
            json!({"kind": "constraints", "partial": true}),
            json!({"kind": "contains", "partial_credit": true}),
        ] {
            assert!(read(wrong.clone()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_scorer_is_not_built_from_invalid_options() {
        let config = RewardConfig::Contains(ContainsConfig::default());
        let error = config.build().err().expect("there is no text");
        assert!(error.to_string().contains("text is \"\""), "{error}");
    }
}
