//! What an algorithm is to the rest of the system: options in, [`Needs`] and a loss out.

mod batch;
mod describe;
mod metrics;
mod needs;
mod options;

use std::collections::BTreeMap;
use std::path::Path;

use arriero_buffers::Tree;
use serde_json::Value;
use tch::Tensor;

pub use batch::{MicroBatch, Totals};
pub(super) use describe::describe;
pub use describe::{Description, OptionDescription};
pub use metrics::Metrics;
pub use needs::{Critic, CriticKind, Divergence, Needs, Statistics};
pub(super) use options::options;

/// Options of an algorithm: what stands beside `kind` in an experiment file.
pub trait AlgorithmConfig {
    /// The function that is optimised.
    fn objective(&self) -> Box<dyn Objective>;

    /// The same options with nothing left open: as they are, unless one's default hangs on another.
    fn resolved(&self) -> Self
    where
        Self: Sized + Clone,
    {
        self.clone()
    }

    /// Fills in what follows from how experience is sampled, where it was left open: `max_new_tokens` is the
    /// generator's token limit.
    fn fit(&mut self, _max_new_tokens: usize) {}

    /// The model beside the policy that it learns from, where there is one: a path, or `default`.
    fn teacher(&self) -> Option<&Path> {
        None
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// A sentence that begins with the option's name, and tells its value and its range.
    fn validate(&self) -> std::result::Result<(), String>;

    /// True if it learns from fresh samples of the policy that it trains, a few steps a round: its optimiser then goes on
    /// from round to round.
    fn is_online(&self) -> bool {
        self.objective().needs().selection.is_online()
    }
}

/// An alignment algorithm.
pub trait Objective: Send {
    /// What it must be given.
    fn needs(&self) -> Needs;

    /// The loss of a micro-batch, as its share of the whole batch's loss: the sum over the
    /// micro-batches of a batch is the loss of the batch, so that its gradients do not depend on how
    /// it was cut. Under [`Needs::whole_batch`] the micro-batch is the batch.
    fn loss(&self, statistics: &TokenStatistics, batch: &MicroBatch<'_>) -> Loss;

    /// Why a tree is left out before training; nothing if it is of use. One word for the record.
    fn refuses(&self, _tree: &Tree) -> Option<&'static str> {
        None
    }

    /// Looks at all trees of a stage, but for those that it refuses, before anything else is done with them.
    ///
    /// # Errors
    /// A sentence that says what the objective cannot learn from, and what to do.
    fn check(&self, _experience: &[&Tree]) -> std::result::Result<(), String> {
        Ok(())
    }

    /// Told of all trees of a stage, with everything that it [`Needs`] about them, before the first step.
    fn begin(&mut self, _experience: &[&Tree]) {}

    /// Told of every optimiser step that was taken, with the batch's metrics: where running statistics
    /// move on. A step that failed is not told.
    fn stepped(&mut self, _metrics: &BTreeMap<String, f64>) {}

    /// All that [`Objective::begin`] and [`Objective::stepped`] have set, as plain data: what another objective of the same
    /// options goes on from. `null` where there is no such thing.
    fn state(&self) -> Value {
        Value::Null
    }

    /// Goes on from what [`Objective::state`] gave.
    ///
    /// # Errors
    /// If it is of another objective: what was expected.
    fn restore(&mut self, state: &Value) -> std::result::Result<(), String> {
        match state {
            Value::Null => Ok(()),
            found => Err(format!("expected none, found {found}")),
        }
    }
}

/// What the heads compute of each response token that carries loss. All tensors are f32, `[response tokens]`, in
/// the order of trees, branches, tokens; under [`Statistics::Scores`] all but the values are empty. A token without
/// loss has no statistics.
#[derive(Debug)]
pub struct TokenStatistics {
    /// Log-probability of the token, in nats.
    pub logps: Tensor,
    /// Entropy of the distribution that the token was drawn from, in nats.
    pub entropies: Tensor,
    /// 1 where the token is the most probable one, else 0. Carries no gradient.
    pub top1: Tensor,
    /// A critic's value of the state that the token was drawn in, or a reward model's score of the text that the token
    /// ends; `None` where nobody asked for it.
    pub values: Option<Tensor>,
    /// What a teacher says of it; `None` where nobody asked for it.
    pub teacher: Option<TeacherStatistics>,
}

/// What a teacher says of each response token: f32 `[response tokens]` each.
#[derive(Debug)]
pub struct TeacherStatistics {
    /// [`Divergence`] of the policy's distribution from the teacher's at the token, in nats.
    pub divergences: Tensor,
    /// Log-probability of the token under the teacher, untempered. Carries no gradient.
    pub logps: Tensor,
}

/// A loss with what there is to know about it.
#[derive(Debug)]
pub struct Loss {
    /// The scalar to differentiate.
    pub value: Tensor,
    /// What to log.
    pub metrics: Metrics,
}
