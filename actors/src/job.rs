//! What the actors are asked to do: read-only facts of one piece of work, each with its address.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use arriero_buffers::{Address, Group, Prompt, ScoredGroup, SelectionConfig, SelectionRule};
use arriero_experiment::{AverageStage, DataPlan, GeneratorPlan, ScoredBy, Stage};
use arriero_policy::objective::Algorithm;
use serde::{Deserialize, Serialize};

/// How prompts are answered, and by whom the answers are scored. Under the same weights, equal settings make equal
/// groups.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SamplingSettings {
    pub generator: GeneratorPlan,
    /// Whether each group has a greedy completion more.
    pub greedy_baseline: bool,
    /// `Some` if each sample has a rival, drawn from a mixture of policy and reference: the reference's weight in it.
    pub rivals: Option<f32>,
    pub scored_by: ScoredBy,
}

/// Sample, score and select the groups of a stage in a round. It travels with each group. So whoever has a group knows
/// what is to become of it.
#[derive(Debug)]
pub(crate) struct SamplingJob {
    pub address: Address,
    /// Of the weights to sample from.
    pub version: u32,
    /// Whether the learner is at work meanwhile. Newer weights are then taken as they come.
    pub is_ahead: bool,
    pub prompts: Vec<Arc<Prompt>>,
    pub settings: SamplingSettings,
    /// The stage of this round that has sampled and scored the groups already.
    pub samples_of: Option<String>,
    /// What the algorithm learns from.
    pub rule: SelectionRule,
    /// The rule's bounds.
    pub bounds: SelectionConfig,
    /// Which refuses what it cannot use.
    pub algorithm: Algorithm,
    /// Whether a later stage of the round learns from the groups, too.
    pub keep: bool,
    /// Prompts whose groups have been delivered. A generator that is restarted goes on with the others.
    pub delivered: Mutex<BTreeSet<u64>>,
}

impl SamplingJob {
    /// The prompts whose groups have not been delivered.
    pub fn undelivered(&self) -> impl Iterator<Item = &Arc<Prompt>> {
        let delivered = self.delivered.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.prompts.iter().filter(move |prompt| !delivered.contains(&prompt.id))
    }

    pub fn deliver(&self, prompt_id: u64) {
        self.delivered.lock().unwrap_or_else(PoisonError::into_inner).insert(prompt_id);
    }
}

/// A group that was sampled, on its way to the reward worker.
#[derive(Debug, Clone)]
pub(crate) struct SampledGroup {
    pub job: Arc<SamplingJob>,
    pub group: Arc<Group>,
}

/// A group that was scored, on its way to the rejection sampler.
#[derive(Debug, Clone)]
pub(crate) struct GroupToSelect {
    pub job: Arc<SamplingJob>,
    pub scored: Arc<ScoredGroup>,
}

/// Read the next portion of a pass over a dataset.
#[derive(Debug, Clone)]
pub(crate) struct ReadingJob {
    pub address: Address,
    pub data: Arc<DataPlan>,
    pub rule: SelectionRule,
    /// Which refuses what it cannot use.
    pub algorithm: Algorithm,
    /// Rows of the pass that were read before.
    pub from: u64,
    /// Rows of a whole pass.
    pub rows: u64,
    /// Trees of a portion.
    pub trees: usize,
    /// The most tokens of a tree.
    pub budget: usize,
}

/// Score what in the buffer has no reference score yet.
#[derive(Debug, Clone)]
pub(crate) struct ReferenceJob {
    pub address: Address,
    /// The version of the reference's weights. 0 is the initial ones. Others are the policy's, and are pulled.
    pub version: u32,
    /// Whether the responses were recorded as samples. Rows of a dataset are not.
    pub recorded: bool,
}

/// Train a stage on what the buffer holds.
#[derive(Debug, Clone)]
pub(crate) struct TrainingJob {
    pub address: Address,
    pub stage: Stage,
    /// Rounds of the arm.
    pub rounds: u64,
    pub portion: PortionJob,
}

/// The part of a stage's experience that the buffer holds: a portion of a dataset, else all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortionJob {
    /// From 0. Those after the first go on with the optimiser of the one before.
    pub number: u64,
    /// Passes over it.
    pub epochs: usize,
    /// Optimiser steps of all portions together, where these are more than one.
    pub total_steps: Option<usize>,
    /// Whether each pass has an order of its own.
    pub shuffle: bool,
}

impl PortionJob {
    /// Everything that a stage learns from.
    pub fn whole(epochs: usize, shuffle: bool) -> Self {
        PortionJob { number: 0, epochs, total_steps: None, shuffle }
    }
}

/// Average models.
#[derive(Debug, Clone)]
pub(crate) struct AverageJob {
    pub address: Address,
    pub stage: AverageStage,
}

/// Answer the held-out prompts, and the suites.
#[derive(Debug, Clone)]
pub(crate) struct EvaluationJob {
    pub address: Address,
    /// Of the weights.
    pub version: u32,
    pub prompts: Arc<Vec<Arc<Prompt>>>,
}

/// Write the weights, and what stands beside them.
#[derive(Debug, Clone)]
pub(crate) struct CheckpointJob {
    pub address: Address,
    /// The folder of the arm's checkpoints. This one goes into `step-VERSION`.
    pub root: PathBuf,
    pub optimizer: bool,
    /// What becomes `state.json`. The learner adds its own position: where every stream stands.
    pub state: serde_json::Value,
}
