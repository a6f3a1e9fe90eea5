//! The end of a run that everybody can see.

use arriero_reward::CancellationToken;

/// Set once, when the run is to end early. Whoever works in steps looks at it after each step. Scorers that wait for
/// others stop waiting.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shutdown(CancellationToken);

impl Shutdown {
    pub fn begin(&self) {
        self.0.cancel();
    }

    pub fn has_begun(&self) -> bool {
        self.0.is_cancelled()
    }

    /// What ends scorers' waiting.
    pub fn watch(&self) -> &CancellationToken {
        &self.0
    }
}
