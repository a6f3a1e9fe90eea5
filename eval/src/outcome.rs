//! What came of one item.

use std::collections::BTreeMap;

use arriero_buffers::Completion;
use serde::Serialize;
use serde_json::{Map, Value};

/// One answer of the model and what is said of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sample {
    /// The answer. Of a multiple choice it is the choice that the model finds most probable; of a text it is the
    /// text.
    pub completion: Completion,
    /// What it scored, by name.
    pub scores: BTreeMap<String, f64>,
    /// What else can be said of it, for people to read.
    pub details: Map<String, Value>,
}

/// One item.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// Where its row stands: `FILE:ROW`.
    pub place: String,
    /// Its number among the suite's items, from 0.
    pub id: u64,
    /// What the model was asked, as a person would read it.
    pub prompt: String,
    /// Its numbers, by name: what figures are made of.
    pub scores: BTreeMap<String, f64>,
    /// The model's answers.
    pub samples: Vec<Sample>,
}

impl Outcome {
    /// A number of this name, or 0.
    pub(crate) fn score(&self, name: &str) -> f64 {
        self.scores.get(name).copied().unwrap_or(0.0)
    }
}

/// Numbers by name.
pub(crate) fn scores<const N: usize>(scores: [(&str, f64); N]) -> BTreeMap<String, f64> {
    scores.into_iter().map(|(name, value)| (name.to_string(), value)).collect()
}

/// 1 or 0.
pub(crate) fn indicator(is_so: bool) -> f64 {
    f64::from(u8::from(is_so))
}

/// A completion that nothing drew: a choice, a text.
pub(crate) fn fixed_completion(text: String, tokens: Vec<u32>, logps: Vec<f32>) -> Completion {
    Completion {
        sample: 0,
        sampled_logps: vec![0.0; logps.len()],
        weight_versions: vec![0; logps.len()],
        tokens,
        logps,
        text,
        finish: arriero_buffers::Finish::EndOfTurn,
    }
}
