//! What came of one item.

use std::collections::BTreeMap;

use arriero_buffers::{Completion, Drawn, Finish, UnevenSegment};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

/// One answer of the model and what is said of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sample {
    /// The answer. Of a multiple choice it is the choice that the model finds most probable; of a text it is the
    /// text.
    #[serde(serialize_with = "flat")]
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
pub(crate) fn number(is_so: bool) -> f64 {
    f64::from(u8::from(is_so))
}

/// A text that the policy did not draw, without its tokens.
pub(crate) fn given(text: String) -> Completion {
    Completion::given(0, Vec::new(), text, Finish::EndOfTurn)
}

/// The most probable one of several texts, with its tokens and their log-probabilities: as if it were decoded greedily.
///
/// # Errors
/// If there is not one log-probability a token.
pub(crate) fn chosen(text: String, tokens: Vec<u32>, logps: Vec<f32>) -> Result<Completion, UnevenSegment> {
    let count = tokens.len();
    let drawn = Drawn { logps, sampled_logps: vec![0.0; count], weight_versions: vec![0; count] };
    Completion::drawn(0, tokens, drawn, text, Finish::EndOfTurn)
}

/// Writes a completion as flat lists of one entry a token that the policy drew.
fn flat<S: Serializer>(completion: &Completion, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Flat<'a> {
        sample: u32,
        tokens: Vec<u32>,
        logps: Vec<f32>,
        sampled_logps: Vec<f32>,
        weight_versions: Vec<u32>,
        text: &'a str,
        finish: Finish,
    }
    let flat = Flat {
        sample: completion.sample,
        tokens: completion.drawn_tokens().collect(),
        logps: completion.logps().collect(),
        sampled_logps: completion.sampled_logps().collect(),
        weight_versions: completion.weight_versions().collect(),
        text: &completion.text,
        finish: completion.finish,
    };
    flat.serialize(serializer)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The lines of `arriero eval --samples` are read by others' scripts.
    #[test]
    fn a_sample_is_written_with_flat_lists_of_tokens() {
        let completion = chosen("b c".to_string(), vec![5, 6], vec![-0.5, -0.25]).expect("even");
        let sample = Sample { completion, scores: BTreeMap::new(), details: Map::new() };
        let expected = json!({
            "completion": {
                "sample": 0, "tokens": [5, 6], "logps": [-0.5, -0.25], "sampled_logps": [0.0, 0.0],
                "weight_versions": [0, 0], "text": "b c", "finish": "end_of_turn",
            },
            "scores": {}, "details": {},
        });
        assert_eq!(json!(sample), expected);
    }
}
