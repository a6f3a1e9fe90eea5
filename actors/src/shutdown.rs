//! The end of a run that everybody can see.

use arriero_reward::Watch;

/// Set once, when the run is to end early. Whoever works in steps looks at it between two, and scorers that wait for
/// others stop waiting.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shutdown(Watch);

impl Shutdown {
    pub fn begin(&self) {
        self.0.stop();
    }

    pub fn has_begun(&self) -> bool {
        self.0.is_stopped()
    }

    /// What scorers heed.
    pub fn watch(&self) -> &Watch {
        &self.0
    }
}
