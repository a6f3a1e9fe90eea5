//! What an objective is given: which trees, and what is known of each of their tokens.

use arriero_buffers::SelectionRule;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What an objective needs from the rest of the system.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Needs {
    /// How the rejection sampler makes the trees.
    pub selection: SelectionRule,
    /// True if every branch must carry log-probabilities of the frozen reference.
    pub reference: bool,
    /// True if the loss couples the trees of a batch by more than its totals (it sorts them, or needs a
    /// mean over them): the trainer then does not cut the batch, whatever `micro_batch_tokens` says.
    pub whole_batch: bool,
    /// True if every branch must carry the trainer's log-probabilities under the weights that training began
    /// with.
    pub old: bool,
    /// What is computed of each response token.
    pub statistics: Statistics,
    /// How the reference follows the policy; the trainer then keeps it and scores each batch in its step, so that
    /// `reference` is false. `None` where it stays as it is.
    pub sync: Option<ReferenceSync>,
    /// True if every branch must carry [`Branch::mismatched_ratio`](arriero_buffers::Branch::mismatched_ratio), which the trainer finds in the step with a
    /// reference of its own.
    pub mismatched: bool,
}

impl Needs {
    /// Trees that this rule makes, probabilities of their tokens, and nothing else.
    pub fn of(selection: impl Into<SelectionRule>) -> Self {
        Needs {
            selection: selection.into(),
            reference: false,
            whole_batch: false,
            old: false,
            statistics: Statistics::Probabilities,
            sync: None,
            mismatched: false,
        }
    }

    /// True if the trainer must keep a reference of its own: see [`crate::trainer::Trainer::with_reference`].
    pub fn keeps_reference(&self) -> bool {
        self.sync.is_some() || self.mismatched
    }
}

/// What is computed of each response token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Statistics {
    /// What the vocabulary's distribution says of it.
    Probabilities,
    /// The same, and a critic's value of the state in which it was drawn. Every branch also carries the values that the
    /// critic gave when training began.
    ProbabilitiesAndValues(Critic),
    /// What the vocabulary's distribution says of it, and how far that is from the distribution of the teacher that
    /// [`AlgorithmConfig::teacher`](crate::objective::AlgorithmConfig::teacher) names.
    ProbabilitiesAndDivergence(Divergence),
    /// The score of the text that it ends, by a reward model, and nothing of the vocabulary.
    Scores,
}

/// The distance between two distributions: GKD's generalised Jensen-Shannon divergence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Divergence {
    /// 0: KL(teacher ‖ policy); 1: KL(policy ‖ teacher); between, that of both to their mixture.
    pub beta: f64,
    /// Divides both models' logits.
    pub temperature: f64,
}

/// Who gives values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Critic {
    /// Where its scalar head sits.
    pub kind: CriticKind,
    /// Its learning rate at the peak; the training's where it is none.
    pub learning_rate: Option<f64>,
}

/// Where a critic's scalar head sits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CriticKind {
    /// On the policy: both learn from the same hidden states.
    #[default]
    Shared,
    /// On a decoder of its own.
    Model,
}

/// How the reference follows the policy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReferenceSync {
    /// α: the policy's share, above 0 and at most 1.
    pub alpha: f64,
    /// τ: steps from one update to the next.
    pub every: usize,
}
