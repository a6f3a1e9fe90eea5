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
//! - [`program`], [`http`]: a program or an endpoint of the user's (`protocol`: requests and answers);
//! - [`judge`]: an LLM that rates or compares;
//! - [`composite`]: several of these, weighted.
//!
//! `per_completion` has what those share that look at one completion at a time. A new kind is a module
//! with a [`ScorerConfig`], and one line in the registry of [`RewardConfig`].

pub mod code;
pub mod composite;
pub mod constraints;
pub mod contains;
pub mod exact;
pub mod format;
pub mod http;
pub mod ifeval;
pub mod json;
pub mod judge;
pub mod length;
pub mod math;
pub mod pattern;
pub mod per_completion;
pub mod program;
pub mod protocol;
pub mod repetition;
pub mod reward_model;

use arriero_buffers::{Group, Prompt, Score};
use serde::{Deserialize, Serialize};
use serde_aux::serde_introspection::serde_introspect;
use serde_json::{Map, Value};

use crate::cancellation::CancellationToken;
use crate::error::RewardError;

/// A score for each completion of a group, in their order, or why it has none.
pub type Outcomes = Vec<Result<Score, RewardError>>;

/// Gives each completion of a group its reward.
pub trait Scorer: Send {
    /// The scorer's name in configurations and metrics.
    fn name(&self) -> &'static str;

    /// One score a completion, in the order of the completions.
    ///
    /// # Errors
    /// If the prompt or a completion lacks what the scorer needs.
    fn score(&mut self, group: &Group) -> Result<Vec<Score>, RewardError>;

    /// Several groups at once, and each completion for itself: one that cannot be scored does not cost the others
    /// their scores. By default one group after the other, each as a whole.
    fn score_groups(&mut self, groups: &[&Group]) -> Vec<Outcomes> {
        let outcomes = |group: &&Group| match self.score(group) {
            Ok(scores) => scores.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error); group.completions.len()],
        };
        groups.iter().map(outcomes).collect()
    }

    /// Completions that it likes to be given at once, where there are many. Default 1.
    fn batch(&self) -> usize {
        1
    }

    /// Takes the token that ends its waiting, if it waits. By default it does not.
    fn set_cancellation(&mut self, _cancellation: &CancellationToken) {}

    /// What the scorer can say of each completion beyond numbers, for people to read; nothing by
    /// default.
    ///
    /// # Errors
    /// As [`Scorer::score`].
    fn details(&mut self, group: &Group) -> Result<Vec<Map<String, Value>>, RewardError> {
        Ok(vec![Map::new(); group.completions.len()])
    }
}

/// The options of a kind of reward: what stands beside `kind` in an experiment file.
pub trait ScorerConfig {
    /// Checks the options.
    ///
    /// # Errors
    /// With a sentence that names the option, its value and its range.
    fn validate(&self) -> Result<(), String> {
        Ok(())
    }

    /// Checks that a prompt has what this reward needs, before anything is sampled for it.
    ///
    /// # Errors
    /// If its `checks` cannot be read, or lack what the reward needs.
    fn check_prompt(&self, _prompt: &Prompt) -> Result<(), RewardError> {
        Ok(())
    }

    /// The members of a prompt's `checks` that this reward reads.
    fn check_names(&self) -> Vec<&'static str> {
        Vec::new()
    }

    /// True if a completion's reward depends on the others of its group.
    fn compares_completions(&self) -> bool {
        false
    }

    /// True if a completion alone cannot be scored.
    fn needs_several(&self) -> bool {
        false
    }

    /// The scorer of valid options.
    ///
    /// # Errors
    /// If what the options name cannot be used, such as a model or a program.
    fn scorer(&self) -> Result<Box<dyn Scorer>, RewardError>;
}

/// Makes [`RewardConfig`] from one line a kind.
macro_rules! registry {
    ($($kind:literal => $variant:ident($config:ty), $about:literal;)*) => {
        /// Which scorer, and its options.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "kind")]
        pub enum RewardConfig {
            $(#[doc = $about] #[serde(rename = $kind)] $variant($config),)*
        }

        impl RewardConfig {
            /// Every value of `kind`.
            pub const KINDS: &[&str] = &[$($kind),*];

            /// The value of `kind`.
            pub fn kind(&self) -> &'static str {
                match self { $(Self::$variant(_) => $kind,)* }
            }

            /// Names of the options of a `kind`; none for an unknown one.
            pub fn option_names(kind: &str) -> &'static [&'static str] {
                match kind { $($kind => serde_introspect::<$config>(),)* _ => &[] }
            }

            fn options(&self) -> &dyn ScorerConfig {
                match self { $(Self::$variant(config) => config,)* }
            }
        }
    };
}

registry! {
    "constraints" => Constraints(constraints::ConstraintsConfig), "The share of the prompt's constraints that a completion follows.";
    "contains" => Contains(contains::ContainsConfig), "Whether a completion contains a text.";
    "ifeval" => Ifeval(ifeval::IfevalConfig), "Whether a completion follows the prompt's IFEval instructions.";
    "math" => Math(math::MathConfig), "Whether the final answer is the prompt's.";
    "exact" => Exact(exact::ExactConfig), "Whether a completion equals the prompt's answer.";
    "regex" => Regex(pattern::RegexConfig), "Whether a completion matches a regular expression.";
    "json" => Json(json::JsonConfig), "Whether a completion is JSON, and fits a schema.";
    "length" => Length(length::LengthConfig), "Whether a completion's length is within bounds.";
    "format" => Format(format::FormatConfig), "Whether a completion has a layout of tags.";
    "repetition" => Repetition(repetition::RepetitionConfig), "A penalty for repeated n-grams.";
    "soft_overlong" => SoftOverlong(length::SoftOverlongConfig), "DAPO's soft penalty for what is too long.";
    "code" => Code(code::CodeConfig), "Whether a completion's code passes the prompt's tests.";
    "reward_model" => RewardModel(reward_model::RewardModelConfig), "The score of a reward model.";
    "program" => Program(program::ProgramConfig), "What a program of the user's says.";
    "http" => Http(http::HttpConfig), "What an HTTP endpoint says.";
    "judge" => Judge(judge::JudgeConfig), "What an LLM says.";
    "composite" => Composite(composite::CompositeConfig), "Several scorers, weighted.";
}

impl Default for RewardConfig {
    fn default() -> Self {
        RewardConfig::Constraints(constraints::ConstraintsConfig::default())
    }
}

impl RewardConfig {
    /// Checks the options.
    ///
    /// # Errors
    /// As [`ScorerConfig::validate`].
    pub fn validate(&self) -> Result<(), String> {
        self.options().validate()
    }

    /// Checks that a prompt has what this reward needs, before anything is sampled for it.
    ///
    /// # Errors
    /// As [`ScorerConfig::check_prompt`]; and if its constraints cannot be read, which the evaluator
    /// counts under every reward.
    pub fn check_prompt(&self, prompt: &Prompt) -> Result<(), RewardError> {
        constraints::verdicts(prompt, "")?;
        self.options().check_prompt(prompt)
    }

    /// The members of a prompt's `checks` that this reward reads.
    pub fn check_names(&self) -> Vec<&'static str> {
        self.options().check_names()
    }

    /// True if a completion's reward depends on the others of its group.
    pub fn compares_completions(&self) -> bool {
        self.options().compares_completions()
    }

    /// True if a completion alone cannot be scored.
    pub fn needs_several(&self) -> bool {
        self.options().needs_several()
    }

    /// The scorer.
    ///
    /// # Errors
    /// If the options are not valid, or what they name cannot be used.
    pub fn build(&self) -> Result<Box<dyn Scorer>, RewardError> {
        self.validate().map_err(RewardError::Config)?;
        self.options().scorer()
    }
}

/// A group for tests: a prompt with `checks`, and a completion for each text and ending.
#[cfg(test)]
fn group(checks: serde_json::Value, texts: &[(&str, arriero_buffers::Finish)]) -> Group {
    let completion = |(sample, &(text, finish)): (usize, &(&str, arriero_buffers::Finish))| {
        arriero_buffers::Completion::given(sample as u32, vec![1], text, finish)
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
            json!({"kind": "program", "command": ["cat"], "unit": "group", "timeout": 5.0}),
            json!({"kind": "http", "url": "http://127.0.0.1:1/", "headers": {"a": "b"}, "requests_per_minute": 5.0}),
            json!({"kind": "judge", "base_url": "http://127.0.0.1:1/v1", "model": "m", "mode": "pairwise"}),
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
        let config = RewardConfig::Contains(contains::ContainsConfig::default());
        let error = config.build().err().expect("there is no text");
        assert!(error.to_string().contains("text is \"\""), "{error}");
    }
}
