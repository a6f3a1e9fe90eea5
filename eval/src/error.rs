//! What can go wrong.

use arriero_data::DataError;
use arriero_policy::PolicyError;
use arriero_reward::RewardError;
use arriero_store::StoreError;

/// Why a suite cannot be evaluated.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// An option is wrong. The sentence begins with the option's name.
    #[error("{suite}: {message}")]
    Config {
        /// The suite's name.
        suite: String,
        /// What is wrong, and what to do.
        message: String,
    },
    /// There is no suite of this name.
    #[error("there is no suite \"{name}\"; the nearest is \"{nearest}\" (all: {all})")]
    UnknownSuite {
        /// What was asked for.
        name: String,
        /// What looks most like it.
        nearest: &'static str,
        /// Every name.
        all: String,
    },
    /// An option on the command line is wrong.
    #[error("--set {assignment}: {message}")]
    Assignment {
        /// The option as it was given.
        assignment: String,
        /// What is wrong, and what to do.
        message: String,
    },
    /// The suite's rows cannot be read.
    #[error("{suite}: {cause}{hint}")]
    Data {
        /// The suite's name.
        suite: String,
        /// Why.
        cause: DataError,
        /// What to do, where the path was not the caller's.
        hint: String,
    },
    /// A row cannot be used, and `on_error` is stop.
    #[error("{suite}: {place}: {cause}; mend it, or leave such rows out with on_error=skip")]
    Row {
        /// The suite's name.
        suite: String,
        /// `FILE:ROW`.
        place: String,
        /// What is wrong with it.
        cause: String,
    },
    /// More rows were left out than may be.
    #[error(
        "{suite}: {skipped} of {rows} rows were left out, more than the share of {allowed} that max_skipped allows; \
         the first: {first}"
    )]
    TooManySkipped {
        /// The suite's name.
        suite: String,
        /// How many.
        skipped: u64,
        /// Of how many.
        rows: u64,
        /// `max_skipped`.
        allowed: f64,
        /// Where the first of them is, and what is wrong with it.
        first: String,
    },
    /// No row is left to ask.
    #[error("{suite}: {path} has no row to ask: {read} were read, {examples} of them for examples")]
    NothingToAsk {
        /// The suite's name.
        suite: String,
        /// The file.
        path: String,
        /// Rows that were read.
        read: u64,
        /// Rows that serve as examples.
        examples: u64,
    },
    /// The model cannot be used, or cannot do what the suite needs.
    #[error("{suite}: {cause}")]
    Policy {
        /// The suite's name.
        suite: String,
        /// Why.
        cause: PolicyError,
    },
    /// The judge cannot be used.
    #[error("{suite}: {cause}")]
    Reward {
        /// The suite's name.
        suite: String,
        /// Why.
        cause: RewardError,
    },
    /// What came of it cannot be recorded.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl EvalError {
    /// Whether the caller's input is wrong, so that trying again would end the same way.
    pub fn is_input(&self) -> bool {
        !matches!(self, EvalError::Store(_) | EvalError::Data { cause: DataError::Unreadable { .. }, .. })
    }
}
