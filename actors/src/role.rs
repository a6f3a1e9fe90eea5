//! The actors of a run, by what they do.

use serde::{Deserialize, Serialize};

/// An actor that the conductor supervises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActorRole {
    /// Reads datasets.
    DataReader,
    /// Samples completions.
    Generator,
    /// Scores completions.
    RewardWorker,
    /// Makes trees of scored groups.
    RejectionSampler,
    /// Scores trees with a frozen policy.
    Reference,
    /// Trains.
    Learner,
    /// Measures.
    Evaluator,
    /// Writes.
    Recorder,
}

impl ActorRole {
    /// Every actor.
    pub const ALL: [ActorRole; 8] = [
        ActorRole::DataReader,
        ActorRole::Generator,
        ActorRole::RewardWorker,
        ActorRole::RejectionSampler,
        ActorRole::Reference,
        ActorRole::Learner,
        ActorRole::Evaluator,
        ActorRole::Recorder,
    ];

    /// Its name in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            ActorRole::DataReader => "data reader",
            ActorRole::Generator => "generator",
            ActorRole::RewardWorker => "reward worker",
            ActorRole::RejectionSampler => "rejection sampler",
            ActorRole::Reference => "reference",
            ActorRole::Learner => "learner",
            ActorRole::Evaluator => "evaluator",
            ActorRole::Recorder => "recorder",
        }
    }

    /// True where another actor can take its place and nothing is lost: all that it keeps is also elsewhere.
    pub fn can_be_replaced(self) -> bool {
        !matches!(self, ActorRole::Learner | ActorRole::Recorder)
    }
}
