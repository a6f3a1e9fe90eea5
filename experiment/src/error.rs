//! What can be wrong with an experiment, and what to do about it.

use std::path::PathBuf;

use arriero_data::DataError;
use arriero_eval::EvalError;
use arriero_policy::PolicyError;
use arriero_reward::RewardError;
use arriero_store::StoreError;

/// What is wrong with an experiment, or with a file that it names.
#[derive(Debug, thiserror::Error)]
pub enum ExperimentError {
    /// The file cannot be read.
    #[error("{path} cannot be read: {cause}")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// What the system says.
        cause: std::io::Error,
    },
    /// The file, or a `--set`, is no TOML.
    #[error("{place}: {cause}")]
    Syntax {
        /// File and line.
        place: String,
        /// What the parser says.
        cause: String,
    },
    /// A key or its value is wrong.
    #[error("{place}: {message}")]
    Key {
        /// File and line, or the `--set`.
        place: String,
        /// What is wrong with which key, and what to do.
        message: String,
    },
    /// A file of prompts is wrong.
    #[error("{place}: {message}")]
    Prompts {
        /// File and line.
        place: String,
        /// What is wrong, and what to do.
        message: String,
    },
    /// The resolved experiment cannot be written as TOML.
    #[error("the resolved experiment cannot be written: {cause}")]
    Unwritable {
        /// What the writer says.
        cause: String,
    },
}

/// What is wrong with what an experiment names, found before anything heavy loads.
#[derive(Debug, thiserror::Error)]
pub enum PreflightError {
    /// The experiment is wrong.
    #[error(transparent)]
    Experiment(#[from] ExperimentError),
    /// The model cannot be used.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// A prompt lacks what the reward needs.
    #[error(transparent)]
    Reward(#[from] RewardError),
    /// A dataset cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A suite of the evaluation cannot be asked.
    #[error(transparent)]
    Suite(#[from] EvalError),
    /// The run cannot be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A stage cannot learn from its dataset.
    #[error("{0}")]
    TrainingData(String),
    /// A prompt cannot be used.
    #[error("{place}: {cause}")]
    Prompt {
        /// File and number, or which of the built-in prompts.
        place: String,
        /// Why.
        cause: Box<PreflightError>,
    },
    /// Too many prompts were skipped for the rounds.
    #[error(
        "{left} training prompts are left, but {rounds} rounds need at least {needed}; set prompts.per_round to less"
    )]
    FewPrompts {
        /// How many.
        left: usize,
        /// How many are needed.
        needed: usize,
        /// For how many rounds.
        rounds: usize,
    },
}
