//! What is going on.

use std::collections::BTreeMap;

use arriero_buffers::Address;
use arriero_results::Status;
use serde::{Deserialize, Serialize};

use super::outline::Cursor;
use super::sampling_metrics::SamplingMetrics;

/// What is going on, with all that is known of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Phase {
    /// The run has not begun.
    Idle,
    /// The evaluator measures a version of the policy.
    Evaluating {
        /// The work.
        address: Address,
        /// Of the weights.
        version: u32,
    },
    /// The learner goes back to the initial weights.
    Beginning {
        /// The work.
        address: Address,
    },
    /// The data reader fills the buffer.
    Reading {
        /// The work.
        address: Address,
        /// Rows of the pass that were read before.
        from: u64,
        /// Trees in the buffer by now.
        trees: u64,
    },
    /// Groups are sampled, scored and selected.
    Sampling(Box<SamplingPhase>),
    /// The reference scores the buffer.
    Referencing {
        /// The work.
        address: Address,
        /// Of the reference's weights.
        version: u32,
        /// Trees in the buffer.
        total: u64,
        /// Trees that have their scores.
        done: u64,
        /// When it began, in seconds of the run.
        began: f64,
    },
    /// The learner trains.
    Training {
        /// The work.
        address: Address,
        /// Steps taken.
        done: u64,
        /// Steps to take.
        steps: u64,
        /// Trees that are learned from.
        trees: u64,
        /// Those among them that are of this round.
        fresh: u64,
    },
    /// The learner averages models.
    Averaging {
        /// The work.
        address: Address,
    },
    /// The learner writes its weights.
    Checkpointing {
        /// The work.
        address: Address,
        /// What comes after.
        then: AfterCheckpoint,
    },
    /// The run is over.
    Ended,
}

/// What comes after a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum AfterCheckpoint {
    /// The next arm, or the end of the run.
    NextArm,
    /// The run is over, for this cause.
    End(Status, String),
}

impl Phase {
    /// The work that is going on.
    pub fn address(&self) -> Option<&Address> {
        match self {
            Phase::Idle | Phase::Ended => None,
            Phase::Sampling(sampling) => Some(&sampling.address),
            Phase::Evaluating { address, .. }
            | Phase::Beginning { address }
            | Phase::Reading { address, .. }
            | Phase::Referencing { address, .. }
            | Phase::Training { address, .. }
            | Phase::Averaging { address }
            | Phase::Checkpointing { address, .. } => Some(address),
        }
    }
}

/// What became of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum GroupOutcome {
    /// Its tree is in the buffer; with the oldest weights that drew a token of it.
    Accepted(Option<u32>),
    /// It is not used, for this reason.
    Dropped(String),
}

/// The sampling of a stage in a round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SamplingPhase {
    /// The work.
    pub address: Address,
    /// Its stage.
    pub cursor: Cursor,
    /// Of the weights that it began with.
    pub version: u32,
    /// Whether it began while the learner was at work.
    pub is_ahead: bool,
    /// Groups in all.
    pub total: u64,
    /// Completions of a group.
    pub completions: u64,
    /// The phase in numbers.
    pub metrics: SamplingMetrics,
    /// What became of each prompt's group.
    pub outcomes: BTreeMap<u64, GroupOutcome>,
    /// Whether the generator is through.
    pub is_sampled: bool,
    /// If the phase began while the learner was at work: since when nothing else goes on, in seconds of the run.
    pub waited_since: Option<f64>,
    /// Completions without a score.
    pub unscored: u64,
}

impl SamplingPhase {
    /// True when the generator is through and every prompt has an outcome.
    pub fn is_over(&self) -> bool {
        self.is_sampled && self.outcomes.len() as u64 >= self.total
    }

    /// Groups whose trees are in the buffer.
    pub fn accepted(&self) -> u64 {
        self.outcomes.values().filter(|outcome| matches!(outcome, GroupOutcome::Accepted(_))).count() as u64
    }

    /// Groups that were dropped, by reason.
    pub fn dropped(&self) -> BTreeMap<String, u64> {
        let mut reasons = BTreeMap::new();
        for outcome in self.outcomes.values() {
            if let GroupOutcome::Dropped(reason) = outcome {
                *reasons.entry(reason.clone()).or_default() += 1;
            }
        }
        reasons
    }

    /// Groups that would be left unused if the run ended now. Groups that were accepted are among them, since they were
    /// to be trained on. Groups that were dropped are not.
    pub fn unused(&self) -> u64 {
        self.total - self.dropped().values().sum::<u64>()
    }

    /// Seconds in which nothing else went on, at this time of the run.
    pub fn seconds(&self, now: f64) -> f64 {
        self.waited_since.map_or_else(|| self.metrics.seconds(), |since| now - since)
    }
}
