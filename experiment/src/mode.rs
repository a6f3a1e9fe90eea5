//! `mode`: how actors take turns.

use serde::{Deserialize, Serialize};

use crate::document::Section;
use crate::error::ExperimentError;

/// How actors take turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// One phase after the other.
    Lockstep,
    /// The generator samples while the learner trains.
    Async {
        /// The greatest age of a token, in versions of the weights, from those that drew it to those that training on
        /// it begins with.
        max_staleness: u32,
    },
}

impl Mode {
    /// True if actors work at the same time.
    pub fn overlaps(self) -> bool {
        self != Mode::Lockstep
    }
}

/// `mode` in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ModeName {
    Lockstep,
    Async,
}

/// The default of `max_staleness`: enough for the last steps of a round to overlap with the next round's sampling.
const DEFAULT_STALENESS: u32 = 4;

pub(crate) fn mode(root: &mut Section<'_>) -> Result<Mode, ExperimentError> {
    let name = root.take("mode")?.unwrap_or(ModeName::Lockstep);
    let max_staleness: Option<u32> = root.take("max_staleness")?;
    match (name, max_staleness) {
        (ModeName::Lockstep, None) => Ok(Mode::Lockstep),
        (ModeName::Lockstep, Some(_)) => {
            let message =
                "is an option of mode = \"async\"; in lockstep nothing is stale. Remove it, or set the mode";
            Err(root.fail("max_staleness", message))
        }
        (ModeName::Async, given) => Ok(Mode::Async { max_staleness: given.unwrap_or(DEFAULT_STALENESS) }),
    }
}
