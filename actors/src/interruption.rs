//! Who asks a run to end before it has come to its end.

use serde::{Deserialize, Serialize};

/// A request to end the run after the unit of work in progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Interruption {
    /// A person at the terminal.
    CtrlC,
    /// SIGTERM: a service manager.
    Terminate,
    /// SIGHUP: the terminal was closed.
    HangUp,
}

impl Interruption {
    /// What people call it.
    pub fn as_str(self) -> &'static str {
        match self {
            Interruption::CtrlC => "ctrl-c",
            Interruption::Terminate => "SIGTERM",
            Interruption::HangUp => "SIGHUP",
        }
    }
}
