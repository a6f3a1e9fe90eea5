//! What is recorded of an arm.
//!
//! Each record has an [`Address`], whose arm and seed are those of the store. An actor that dies after it has written
//! does its work again, and writes a record twice. The record takes its own place: the comment of each type says what
//! it is known by.

use std::collections::BTreeMap;
use std::path::PathBuf;

use arriero_buffers::{Address, Finish, Segment};
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

/// The metrics of one step of a series. A metric is known by its address, series, step, part and name.
///
/// It serialises as one flat object, the line of `metrics.jsonl`: `arm`, `stage` (the series), `step`, then the
/// metrics by name. JSON has no word for numbers that are not finite: they become null.
#[derive(Debug, Clone, PartialEq)]
pub struct MetricRecord {
    /// Where the numbers belong.
    pub address: Address,
    /// What the numbers are of: a stage's training ("dpo", as the stage is called), "rejection_sampling", "data",
    /// "evaluation", "evaluation/SUITE".
    pub series: String,
    /// Optimiser steps since the arm began.
    pub step: u64,
    /// Which of the records of this step, from 0: portions of a dataset may be read with no step of the policy between
    /// them.
    pub part: u64,
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
        line.serialize_entry(arm, &*self.address.arm)?;
        line.serialize_entry(stage, &self.series)?;
        line.serialize_entry(step, &self.step)?;
        for (name, value) in &self.metrics {
            line.serialize_entry(name, value)?;
        }
        line.end()
    }
}

/// Something that happened. It is known by its key; without one it is always new.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventRecord {
    /// What names it among the arm's events, where it may be told twice.
    pub key: Option<String>,
    /// Where it happened, where that can be said.
    pub address: Option<Address>,
    /// How much it matters.
    pub level: EventLevel,
    /// Who tells it.
    pub actor: String,
    /// What happened, for people to read.
    pub message: String,
}

/// How far a phase of a stage has come. It is known by its address, kind and part. The store notes when it is first written
/// and when it is first said to be over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PhaseRecord {
    /// The stage.
    pub address: Address,
    /// What is done: "sampling", "training", …
    pub kind: String,
    /// Which of the stage's phases of this kind, from 0: a dataset that comes in portions has several.
    pub part: u64,
    /// Units of work that are done.
    pub done: u64,
    /// Units of work in all.
    pub total: u64,
    /// Whether it has ended.
    pub is_over: bool,
}

/// One sampled completion, what was made of it, and where its tokens came from. It is known by its address, evaluation,
/// prompt and number.
#[derive(Debug, Clone, PartialEq)]
pub struct SampleRecord {
    /// Where it was drawn.
    pub address: Address,
    /// The step that was measured, if it answers an evaluation's suite; `None` where it was drawn for training.
    pub evaluation: Option<u64>,
    /// The prompt.
    pub prompt_id: u64,
    /// The prompt's messages, before the chat template: their contents with line breaks between.
    pub prompt: String,
    /// Which of the prompt's samples this is.
    pub sample: u32,
    /// The completion.
    pub text: String,
    /// Its reward; NaN where it has none.
    pub reward: f32,
    /// The parts of the reward, by name. Those that are not finite are NaN when they are read back.
    pub components: BTreeMap<String, f32>,
    /// Its tokens, by who is responsible for them.
    pub segments: Vec<SampleSegment>,
    /// Why it ended.
    pub finish: Finish,
    /// Why it was selected for training, if it was.
    pub selected: Option<String>,
    /// Why it was dropped, if it was.
    pub dropped: Option<String>,
}

impl SampleRecord {
    /// What [`ArmStore::reference`](crate::ArmStore::reference) finds it by.
    pub fn key(&self) -> SampleKey<'_> {
        SampleKey { address: &self.address, prompt_id: self.prompt_id, sample: self.sample }
    }
}

/// A segment of a sample.
#[derive(Debug, Clone, PartialEq)]
pub struct SampleSegment {
    /// Who speaks, the tokens, and where they came from.
    pub segment: Segment,
    /// Log-probabilities (nats) of the tokens under the reference model, where they were computed.
    pub reference_logps: Option<Vec<f32>>,
}

impl From<Segment> for SampleSegment {
    /// A segment that no reference has scored.
    fn from(segment: Segment) -> Self {
        SampleSegment { segment, reference_logps: None }
    }
}

/// Which of the samples that were drawn for training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SampleKey<'a> {
    /// Where it was drawn.
    pub address: &'a Address,
    /// The prompt.
    pub prompt_id: u64,
    /// Which of the prompt's samples.
    pub sample: u32,
}

/// What the policy made of a held-out prompt. It is known by its address, step and prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct OutcomeRecord {
    /// The evaluation.
    pub address: Address,
    /// Optimiser steps of the policy that was measured.
    pub step: u64,
    /// The prompt: the same in all arms, so that their outcomes can be compared in pairs.
    pub prompt_id: u64,
    /// Its checkable instructions.
    pub instructions: u64,
    /// Those that the answer follows.
    pub followed: u64,
    /// The scorer's reward; NaN where it could give none.
    pub reward: f32,
    /// Tokens of the answer.
    pub tokens: u64,
    /// The answer.
    pub text: String,
}

/// Items that were given up for one reason. A count is known by its address, reason and part. The sum over the parts is
/// what was given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DropRecord {
    /// Where they were given up.
    pub address: Address,
    /// Why.
    pub reason: String,
    /// Which of the counts for this reason: the portion of a dataset, the step of an evaluation; else 0.
    pub part: u64,
    /// How many.
    pub count: u64,
}

/// A checkpoint that is on disk. It is known by its step.
#[derive(Debug, Clone, PartialEq)]
pub struct CheckpointRecord {
    /// Where the arm was.
    pub address: Address,
    /// Optimiser steps since the arm began.
    pub step: u64,
    /// Its folder.
    pub path: PathBuf,
    /// Its `state.json`.
    pub manifest: serde_json::Value,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_one_flat_object() {
        let metrics = [("loss", 0.5), ("bad", f64::NAN), ("worse", f64::NEG_INFINITY), ("a\"b", 2.0)];
        let record = MetricRecord {
            address: Address::new("dpo", 3, 1, "dpo-2"),
            series: "train".into(),
            step: 7,
            part: 0,
            metrics: metrics.map(|(name, value)| (name.to_owned(), value)).into(),
        };
        assert_eq!(
            serde_json::to_string(&record).expect("it serialises"),
            r#"{"arm":"dpo","stage":"train","step":7,"a\"b":2.0,"bad":null,"loss":0.5,"worse":null}"#
        );
    }
}
