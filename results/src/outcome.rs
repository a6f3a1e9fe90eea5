//! What came of one item of a benchmark.

use std::collections::BTreeMap;

use arriero_buffers::Completion;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One answer of the model and what is said of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The answer. Of a multiple choice it is the choice that the model finds most probable; of a text it is the
    /// text.
    #[serde(with = "flat")]
    pub completion: Completion,
    /// What it scored, by name.
    pub scores: BTreeMap<String, f64>,
    /// What else can be said of it, for people to read.
    pub details: Map<String, Value>,
}

/// One item.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
    pub fn score(&self, name: &str) -> f64 {
        self.scores.get(name).copied().unwrap_or(0.0)
    }
}

/// A completion as flat lists of one entry a token that the policy drew: the lines of `arriero eval --samples`, which
/// others' scripts read.
mod flat {
    use arriero_buffers::{Completion, Drawn, Finish};
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

    #[derive(Serialize, Deserialize)]
    struct Flat {
        sample: u32,
        tokens: Vec<u32>,
        logps: Vec<f32>,
        sampled_logps: Vec<f32>,
        weight_versions: Vec<u32>,
        text: String,
        finish: Finish,
    }

    pub fn serialize<S: Serializer>(completion: &Completion, serializer: S) -> Result<S::Ok, S::Error> {
        let flat = Flat {
            sample: completion.sample,
            tokens: completion.drawn_tokens().collect(),
            logps: completion.logps().collect(),
            sampled_logps: completion.sampled_logps().collect(),
            weight_versions: completion.weight_versions().collect(),
            text: completion.text.clone(),
            finish: completion.finish,
        };
        flat.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Completion, D::Error> {
        let Flat { sample, tokens, logps, sampled_logps, weight_versions, text, finish } =
            Flat::deserialize(deserializer)?;
        if tokens.is_empty() {
            return Ok(Completion::given(sample, tokens, text, finish));
        }
        let drawn = Drawn { logps, sampled_logps, weight_versions };
        Completion::drawn(sample, tokens, drawn, text, finish).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use arriero_buffers::{Drawn, Finish};
    use serde_json::json;

    use super::*;

    #[test]
    fn a_sample_is_written_with_flat_lists_of_tokens_and_comes_back() {
        let drawn =
            Drawn { logps: vec![-0.5, -0.25], sampled_logps: vec![0.0; 2], weight_versions: vec![0; 2] };
        let completion = Completion::drawn(0, vec![5, 6], drawn, "b c".to_string(), Finish::EndOfTurn);
        let completion = completion.expect("even");
        let sample = Sample { completion, scores: BTreeMap::new(), details: Map::new() };
        let expected = json!({
            "completion": {
                "sample": 0, "tokens": [5, 6], "logps": [-0.5, -0.25], "sampled_logps": [0.0, 0.0],
                "weight_versions": [0, 0], "text": "b c", "finish": "end_of_turn",
            },
            "scores": {}, "details": {},
        });
        assert_eq!(json!(sample), expected);
        assert_eq!(serde_json::from_value::<Sample>(expected).expect("it reads"), sample);
    }
}
