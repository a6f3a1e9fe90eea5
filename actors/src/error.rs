//! Why a run did not start, or did not complete.

use std::net::SocketAddr;

use arriero_experiment::{ExperimentError, PreflightError};
use arriero_policy::PolicyError;
use arriero_store::StoreError;

/// Why a run did not start, or did not complete.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The experiment is wrong, or something that it names.
    #[error(transparent)]
    Preflight(#[from] PreflightError),
    /// The model's weights cannot be used.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The run cannot be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The metrics cannot be served.
    #[error("metrics cannot be served on {address}: {cause}; choose another address with --metrics")]
    Metrics {
        /// Where.
        address: SocketAddr,
        /// Why.
        cause: String,
    },
    /// The runtime could not start.
    #[error("the actor runtime could not start: {0}")]
    Runtime(String),
    /// The run was under way and failed.
    #[error("{0}")]
    Failed(String),
}

impl From<ExperimentError> for RunError {
    fn from(error: ExperimentError) -> Self {
        RunError::Preflight(error.into())
    }
}

impl RunError {
    /// True where nothing had begun: the input is wrong, not the run.
    pub fn is_input(&self) -> bool {
        match self {
            RunError::Preflight(_) | RunError::Policy(_) | RunError::Store(_) | RunError::Metrics { .. } => {
                true
            }
            RunError::Runtime(_) | RunError::Failed(_) => false,
        }
    }
}
