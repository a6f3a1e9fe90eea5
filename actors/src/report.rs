//! What the actors tell the conductor. Every report says which piece of work it is of. So it can be understood alone:
//! written down, read back, or told apart from a report of work that is over.

use std::collections::BTreeMap;
use std::path::PathBuf;

use arriero_buffers::Address;
use arriero_results::Evaluation;
use serde::{Deserialize, Serialize};

use crate::role::ActorRole;

/// News of a piece of work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The work.
    pub address: Address,
    /// What there is to say of it.
    pub news: News,
}

/// What there is to say of a piece of work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum News {
    /// The learner is back at the initial weights: the arm begins.
    Begun,
    /// Trees of the portion that are in the buffer by now.
    Reading {
        /// How many.
        trees: u64,
    },
    /// A portion of a dataset is in the buffer.
    Read(Box<Portion>),
    /// Tokens sampled so far in this phase.
    Sampling {
        /// How many.
        tokens: u64,
        /// In which time.
        seconds: f64,
    },
    /// The generator has delivered every group.
    Sampled {
        /// Tokens that it drew.
        tokens: u64,
        /// Tokens that were drawn for an earlier arm.
        reused: u64,
        /// Time that it took.
        seconds: f64,
    },
    /// A group was scored.
    Scored(Box<GroupFigures>),
    /// Completions that have no score, and why.
    Unscored {
        /// One cause each.
        causes: Vec<String>,
    },
    /// A group's tree is in the buffer.
    Accepted {
        /// Its prompt.
        prompt_id: u64,
        /// The oldest weights that drew a token of it.
        version: Option<u32>,
    },
    /// A group will not be used.
    Dropped {
        /// Its prompt.
        prompt_id: u64,
        /// Why.
        reason: String,
    },
    /// The reference scored a tree.
    ReferenceScored,
    /// The reference has scored all trees.
    Referenced,
    /// The learner has taken what the buffer held.
    Taken,
    /// The learner took a step.
    Stepped {
        /// The policy's weights are of this version now.
        version: u32,
        /// What the step measured.
        metrics: BTreeMap<String, f64>,
        /// Tokens that went through the model.
        tokens: u64,
        /// Time that it took.
        seconds: f64,
    },
    /// The learner has trained on the portion, and the weights are published.
    Trained {
        /// Their version.
        version: u32,
    },
    /// The average is there, and published.
    Averaged {
        /// Its version.
        version: u32,
        /// Time that it took.
        seconds: f64,
    },
    /// Held-out responses so far.
    Evaluating {
        /// How many.
        done: u64,
        /// Of how many.
        total: u64,
        /// Tokens drawn.
        tokens: u64,
        /// In which time.
        seconds: f64,
    },
    /// The evaluation is complete.
    Evaluated(Box<Evaluation>),
    /// The weights are on disk.
    Checkpointed {
        /// Where.
        directory: PathBuf,
        /// Their version.
        version: u32,
        /// What stands beside them.
        state: serde_json::Value,
    },
    /// An actor cannot do what it was asked to.
    Failed {
        /// Who.
        role: ActorRole,
        /// Why.
        cause: String,
    },
}

/// A scored group in a few numbers, for the phase's metrics. They are of the policy's samples. Greedy completions and
/// rivals are yardsticks, and do not count.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct GroupFigures {
    /// Rewards that are finite.
    pub rewards: Vec<f32>,
    /// Completions whose reward is not.
    pub unusable: usize,
    /// Tokens of each completion.
    pub lengths: Vec<usize>,
    /// Tokens of the completions that came to an end of their own.
    pub terminated: Vec<usize>,
    /// The sum of each component, and over how many completions.
    pub components: BTreeMap<String, (f64, u64)>,
}

/// A portion of a dataset that is in the buffer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Portion {
    /// Rows of the pass that are read now.
    pub position: u64,
    /// Whether these are all of them.
    pub is_last: bool,
    /// Trees in the buffer.
    pub accepted: u64,
    /// Rows that are left out, by the reason.
    pub dropped: BTreeMap<String, LeftOut>,
    /// Responses that were cut short.
    pub truncated: u64,
    /// Tokens of the trees.
    pub tokens: u64,
    /// Those among them that carry loss.
    pub loss_tokens: u64,
    /// Time that it took.
    pub seconds: f64,
}

/// Rows that are left out for one reason.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// How many.
    pub count: u64,
    /// Where the first stands, and what is wrong with it.
    pub first: Option<String>,
}
