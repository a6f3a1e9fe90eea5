//! What is recorded of an arm.

use std::collections::BTreeMap;

use arriero_buffers::Finish;
use serde::ser::{Serialize, SerializeMap, Serializer};

/// How much an event matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventLevel {
    /// As planned.
    Info,
    /// Not as planned; the run goes on.
    Warning,
    /// The run, or a part of it, failed.
    Error,
}

impl EventLevel {
    /// The name in the table of events.
    pub fn as_str(self) -> &'static str {
        match self {
            EventLevel::Info => "info",
            EventLevel::Warning => "warning",
            EventLevel::Error => "error",
        }
    }
}

/// The metrics of one step of a stage.
///
/// It serialises as one flat object, the line of `metrics.jsonl`: `arm`, `stage`, `step`, then the
/// metrics by name. JSON has no word for numbers that are not finite: they become null.
#[derive(Debug, Clone, PartialEq)]
pub struct MetricRecord {
    /// The arm.
    pub arm: String,
    /// The stage.
    pub stage: String,
    /// Optimiser steps since the arm began.
    pub step: u64,
    /// The numbers by name.
    pub metrics: BTreeMap<String, f64>,
}

impl MetricRecord {
    /// The keys that start every line; no metric may have their names.
    pub const KEYS: [&str; 3] = ["arm", "stage", "step"];
}

impl Serialize for MetricRecord {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let [arm, stage, step] = Self::KEYS;
        let mut line = serializer.serialize_map(Some(Self::KEYS.len() + self.metrics.len()))?;
        line.serialize_entry(arm, &self.arm)?;
        line.serialize_entry(stage, &self.stage)?;
        line.serialize_entry(step, &self.step)?;
        for (name, value) in &self.metrics {
            line.serialize_entry(name, value)?;
        }
        line.end()
    }
}

/// One sampled completion, what was made of it, and where its tokens came from.
///
/// The per-token vectors have one entry a token.
#[derive(Debug, Clone, PartialEq)]
pub struct SampleRecord {
    /// The stage.
    pub stage: String,
    /// The round within the stage.
    pub round: u64,
    /// The prompt.
    pub prompt_id: u64,
    /// The prompt's messages, before the chat template: their contents with line breaks between.
    pub prompt: String,
    /// Which of the prompt's samples this is.
    pub sample: u32,
    /// The completion.
    pub text: String,
    /// Its reward.
    pub reward: f32,
    /// The parts of the reward, by name.
    pub components: BTreeMap<String, f32>,
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// Log-probabilities (nats) under the untempered, untruncated model.
    pub logps: Vec<f32>,
    /// Log-probabilities (nats) under the distribution that was sampled from.
    pub sampled_logps: Vec<f32>,
    /// Log-probabilities (nats) under the reference model, where they were computed.
    pub reference_logps: Option<Vec<f32>>,
    /// Versions of the weights that gave the tokens.
    pub weight_versions: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
    /// Why it was selected for training, if it was.
    pub selected: Option<String>,
    /// Why it was dropped, if it was.
    pub dropped: Option<String>,
}

/// Which sample: what its row is found by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SampleKey<'a> {
    /// The stage.
    pub stage: &'a str,
    /// The round within the stage.
    pub round: u64,
    /// The prompt.
    pub prompt_id: u64,
    /// Which of the prompt's samples.
    pub sample: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_one_flat_object() {
        let metrics = [("loss", 0.5), ("bad", f64::NAN), ("worse", f64::NEG_INFINITY), ("a\"b", 2.0)];
        let record = MetricRecord {
            arm: "dpo".into(),
            stage: "train".into(),
            step: 7,
            metrics: metrics.map(|(name, value)| (name.to_owned(), value)).into(),
        };
        assert_eq!(
            serde_json::to_string(&record).expect("it serialises"),
            r#"{"arm":"dpo","stage":"train","step":7,"a\"b":2.0,"bad":null,"loss":0.5,"worse":null}"#
        );
    }
}
