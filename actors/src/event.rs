//! What a run tells its spectator.

use std::collections::BTreeMap;

pub use arriero_store::EventLevel;

use arriero_results::HeldOut;
use serde::{Deserialize, Serialize};

/// What the system is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PhaseKind {
    /// Measuring the model that every arm starts from.
    Baseline,
    /// Reading a dataset.
    Reading,
    /// Sampling, scoring and selecting.
    Sampling,
    /// Scoring reference log-probabilities.
    Reference,
    /// Training.
    Training,
    /// Averaging models.
    Averaging,
    /// Measuring the trained model.
    Evaluation,
    /// Writing weights.
    Checkpoint,
}

impl PhaseKind {
    /// True for what is done in each round of an arm, not for the arm as a whole.
    pub fn is_of_a_round(self) -> bool {
        match self {
            PhaseKind::Reading
            | PhaseKind::Sampling
            | PhaseKind::Reference
            | PhaseKind::Training
            | PhaseKind::Averaging => true,
            PhaseKind::Baseline | PhaseKind::Evaluation | PhaseKind::Checkpoint => false,
        }
    }

    /// One word for a progress bar.
    pub fn as_str(self) -> &'static str {
        match self {
            PhaseKind::Baseline => "baseline",
            PhaseKind::Reading => "reading",
            PhaseKind::Sampling => "sampling",
            PhaseKind::Reference => "reference",
            PhaseKind::Training => "training",
            PhaseKind::Averaging => "averaging",
            PhaseKind::Evaluation => "evaluation",
            PhaseKind::Checkpoint => "checkpoint",
        }
    }
}

/// Something to show. Figures that matter are in the store as well.
#[derive(Debug, Clone, PartialEq)]
pub enum RunEvent {
    /// The run begins: its folder, and what computes.
    Started {
        /// `runs/NAME`.
        directory: String,
        /// Model, device, precision.
        description: String,
    },
    /// A phase begins.
    Phase {
        /// Which.
        kind: PhaseKind,
        /// The arm; empty for the baseline.
        arm: String,
        /// The round, from 1, where the arm has several.
        round: Option<usize>,
        /// The stage.
        stage: String,
        /// Units of work.
        total: u64,
    },
    /// The phase's state.
    Progress {
        /// Units done.
        done: u64,
        /// Units in all.
        total: u64,
        /// Mean reward so far.
        reward: Option<f64>,
        /// Tokens a second.
        rate: Option<f64>,
    },
    /// An optimiser step.
    Step {
        /// Steps of this phase.
        done: u64,
        /// Its metrics.
        metrics: BTreeMap<String, f64>,
        /// Tokens a second.
        rate: Option<f64>,
    },
    /// Held-out figures.
    Evaluated {
        /// The figures.
        figures: HeldOut,
    },
    /// An arm is complete.
    ArmDone {
        /// Which.
        arm: String,
    },
    /// Something worth knowing.
    Note {
        /// How bad.
        level: EventLevel,
        /// What.
        message: String,
    },
}
