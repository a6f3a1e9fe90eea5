//! What gives completions their rewards.
//!
//! - [`constraints`]: the share of the prompt's verifiable instructions that a completion follows;
//! - [`ifeval`]: IFEval's instructions, strict or loose;
//! - [`math`]: whether the final answer is right;
//! - [`exact`], [`contains`], [`pattern`]: whether a completion is, contains or matches a text;
//! - [`json`]: whether it is JSON, and fits a JSON Schema; [`mod@format`]: whether it has a layout;
//! - [`length`]: whether it is long enough, and DAPO's soft penalty; [`repetition`]: whether it
//!   repeats itself;
//! - [`code`]: whether its code passes tests;
//! - [`reward_model`]: a trained model's score;
//! - [`composite`]: several of these, weighted.
//!
//! `per_completion` has what those share that look at one completion at a time.

pub mod code;
pub mod composite;
pub mod constraints;
pub mod contains;
pub mod exact;
pub mod format;
pub mod ifeval;
pub mod json;
pub mod length;
pub mod math;
pub mod pattern;
pub mod per_completion;
pub mod repetition;
pub mod reward_model;

use arriero_buffers::{Group, Prompt, Score};
use serde::{Deserialize, Serialize};
use serde_aux::serde_introspection::serde_introspect;
use serde_json::{Map, Value};

use crate::checks::Checks;
use crate::error::RewardError;
use code::CodeConfig;
use composite::CompositeConfig;
use constraints::{ConstraintsConfig, ConstraintsScorer};
use contains::{ContainsConfig, ContainsScorer};
use exact::ExactConfig;
use format::FormatConfig;
use ifeval::{IfevalConfig, IfevalScorer};
use json::JsonConfig;
use length::{LengthConfig, SoftOverlongConfig};
use math::MathConfig;
use pattern::RegexConfig;
use repetition::RepetitionConfig;
use reward_model::RewardModelConfig;

/// Gives each completion of a group its reward.
pub trait Scorer: Send {
    /// The scorer's name in configurations and metrics.
    fn name(&self) -> &'static str;

    /// One score a completion, in the order of the completions.
    ///
    /// # Errors
    /// If the prompt or a completion lacks what the scorer needs.
    fn score(&mut self, group: &Group) -> Result<Vec<Score>, RewardError>;

    /// What the scorer can say of each completion beyond numbers, for people to read; nothing by
    /// default.
    ///
    /// # Errors
    /// As [`Scorer::score`].
    fn details(&mut self, group: &Group) -> Result<Vec<Map<String, Value>>, RewardError> {
        Ok(vec![Map::new(); group.completions.len()])
    }
}

/// Which scorer, and its options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum RewardConfig {
    /// The share of the prompt's constraints that a completion follows.
    Constraints(ConstraintsConfig),
    /// Whether a completion contains a text.
    Contains(ContainsConfig),
    /// Whether a completion follows the prompt's IFEval instructions.
    Ifeval(IfevalConfig),
    /// Whether the final answer is the prompt's.
    Math(MathConfig),
    /// Whether a completion equals the prompt's answer.
    Exact(ExactConfig),
    /// Whether a completion matches a regular expression.
    Regex(RegexConfig),
    /// Whether a completion is JSON, and fits a schema.
    Json(JsonConfig),
    /// Whether a completion's length is within bounds.
    Length(LengthConfig),
    /// Whether a completion has a layout of tags.
    Format(FormatConfig),
    /// A penalty for repeated n-grams.
    Repetition(RepetitionConfig),
    /// DAPO's soft penalty for what is too long.
    SoftOverlong(SoftOverlongConfig),
    /// Whether a completion's code passes the prompt's tests.
    Code(CodeConfig),
    /// The score of a reward model.
    RewardModel(RewardModelConfig),
    /// Several scorers, weighted.
    Composite(CompositeConfig),
}

impl Default for RewardConfig {
    fn default() -> Self {
        RewardConfig::Constraints(ConstraintsConfig::default())
    }
}

impl RewardConfig {
    /// Every value of `kind`.
    pub const KINDS: &[&str] = &[
        "constraints",
        "contains",
        "ifeval",
        "math",
        "exact",
        "regex",
        "json",
        "length",
        "format",
        "repetition",
        "soft_overlong",
        "code",
        "reward_model",
        "composite",
    ];

    /// The value of `kind`.
    pub fn kind(&self) -> &'static str {
        match self {
            RewardConfig::Constraints(_) => "constraints",
            RewardConfig::Contains(_) => "contains",
            RewardConfig::Ifeval(_) => "ifeval",
            RewardConfig::Math(_) => "math",
            RewardConfig::Exact(_) => "exact",
            RewardConfig::Regex(_) => "regex",
            RewardConfig::Json(_) => "json",
            RewardConfig::Length(_) => "length",
            RewardConfig::Format(_) => "format",
            RewardConfig::Repetition(_) => "repetition",
            RewardConfig::SoftOverlong(_) => "soft_overlong",
            RewardConfig::Code(_) => "code",
            RewardConfig::RewardModel(_) => "reward_model",
            RewardConfig::Composite(_) => "composite",
        }
    }

    /// Names of the options of a `kind`; none for an unknown one.
    pub fn option_names(kind: &str) -> &'static [&'static str] {
        match kind {
            "constraints" => serde_introspect::<ConstraintsConfig>(),
            "contains" => serde_introspect::<ContainsConfig>(),
            "ifeval" => serde_introspect::<IfevalConfig>(),
            "math" => serde_introspect::<MathConfig>(),
            "exact" => serde_introspect::<ExactConfig>(),
            "regex" => serde_introspect::<RegexConfig>(),
            "json" => serde_introspect::<JsonConfig>(),
            "length" => serde_introspect::<LengthConfig>(),
            "format" => serde_introspect::<FormatConfig>(),
            "repetition" => serde_introspect::<RepetitionConfig>(),
            "soft_overlong" => serde_introspect::<SoftOverlongConfig>(),
            "code" => serde_introspect::<CodeConfig>(),
            "reward_model" => serde_introspect::<RewardModelConfig>(),
            "composite" => serde_introspect::<CompositeConfig>(),
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
            RewardConfig::Ifeval(_) | RewardConfig::Exact(_) => Ok(()),
            RewardConfig::Math(config) => config.validate(),
            RewardConfig::Regex(config) => config.validate(),
            RewardConfig::Json(config) => config.validate(),
            RewardConfig::Length(config) => config.validate(),
            RewardConfig::Format(config) => config.validate(),
            RewardConfig::Repetition(config) => config.validate(),
            RewardConfig::SoftOverlong(config) => config.validate(),
            RewardConfig::Code(config) => config.validate(),
            RewardConfig::RewardModel(config) => config.validate(),
            RewardConfig::Composite(config) => config.validate(),
        }
    }

    /// Checks that a prompt has what this reward needs, before anything is sampled for it.
    ///
    /// # Errors
    /// If its `checks` cannot be read, or lack what the reward needs.
    pub fn check_prompt(&self, prompt: &Prompt) -> Result<(), RewardError> {
        // The evaluator reads constraints under every reward.
        let verdicts = constraints::verdicts(prompt, "")?;
        match self {
            RewardConfig::Constraints(_) if verdicts.is_empty() => Err(RewardError::NoConstraints(prompt.id)),
            RewardConfig::Ifeval(_) => ifeval::instructions_of(prompt).map(drop),
            RewardConfig::Math(_) | RewardConfig::Exact(_) => Checks::of(prompt)?.answer(prompt.id).map(drop),
            RewardConfig::Json(config) => config.check_prompt(prompt),
            RewardConfig::Code(config) => config.check_prompt(prompt),
            RewardConfig::Composite(config) => config.check_prompt(prompt),
            _ => Ok(()),
        }
    }

    /// The members of a prompt's `checks` that this reward reads.
    pub fn check_names(&self) -> Vec<&'static str> {
        match self {
            RewardConfig::Constraints(_) => vec!["constraints"],
            RewardConfig::Ifeval(_) => vec!["instruction_id_list", "kwargs"],
            RewardConfig::Math(_) | RewardConfig::Exact(_) => vec!["answer"],
            RewardConfig::Json(_) => vec!["schema"],
            RewardConfig::Code(_) => code::CHECKS.to_vec(),
            RewardConfig::Composite(config) => config.check_names(),
            _ => Vec::new(),
        }
    }

    /// True if a completion's reward depends on the others of its group.
    pub fn compares_completions(&self) -> bool {
        matches!(self, RewardConfig::Composite(config) if config.compares_completions())
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
            RewardConfig::Ifeval(config) => Box::new(IfevalScorer { config: config.clone() }),
            RewardConfig::Math(config) => config.scorer(),
            RewardConfig::Exact(config) => config.scorer(),
            RewardConfig::Regex(config) => config.scorer().map_err(RewardError::Config)?,
            RewardConfig::Json(config) => config.scorer().map_err(RewardError::Config)?,
            RewardConfig::Length(config) => config.scorer(),
            RewardConfig::Format(config) => config.scorer().map_err(RewardError::Config)?,
            RewardConfig::Repetition(config) => config.scorer(),
            RewardConfig::SoftOverlong(config) => config.scorer(),
            RewardConfig::Code(config) => config.scorer()?,
            RewardConfig::RewardModel(config) => config.scorer()?,
            RewardConfig::Composite(config) => config.scorer()?,
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

/// A reward model of one layer, which transformers made.
#[cfg(test)]
const TINY_REWARD_MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../policy/tests/vectors/reward_model");

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_kind_is_listed_and_round_trips() {
        let configs = [
            json!({"kind": "constraints"}),
            json!({"kind": "contains", "text": "yes", "case_sensitive": true}),
            json!({"kind": "ifeval", "mode": "loose"}),
            json!({"kind": "math", "answer": "boxed", "tolerance": 0.001}),
            json!({"kind": "exact", "white_space": true}),
            json!({"kind": "regex", "pattern": "a"}),
            json!({"kind": "json", "schema": {"type": "object"}}),
            json!({"kind": "length", "unit": "characters", "max": 3}),
            json!({"kind": "format", "tags": ["think"], "text_after": true}),
            json!({"kind": "repetition", "ngram": 4}),
            json!({"kind": "soft_overlong", "max_completion_len": 8, "soft_punish_cache": 2}),
            json!({"kind": "code", "time_limit": 2.0, "sandbox": "none"}),
            json!({"kind": "reward_model", "path": TINY_REWARD_MODEL, "device": "cpu", "dtype": "f32"}),
            json!({"kind": "composite", "parts": [{"clip": [0.0, 1.0], "reward": {"kind": "exact"}}]}),
        ]
        .map(|value| serde_json::from_value::<RewardConfig>(value).expect("a reward"));
        assert_eq!(configs.each_ref().map(RewardConfig::kind), RewardConfig::KINDS);
        for config in configs {
            let value = serde_json::to_value(&config).expect("plain data");
            assert_eq!(value["kind"], config.kind());
            let names = RewardConfig::option_names(config.kind());
            let known = |name: &String| name == "kind" || names.contains(&name.as_str());
            assert!(value.as_object().expect("a table").keys().all(known), "{value} has all of {names:?}");
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
