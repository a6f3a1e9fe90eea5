//! Keepers of programs need Linux; elsewhere programs have none.

use std::process::{Command, ExitCode};
use std::time::Duration;

/// How long a program may take to end after its input has ended.
pub(super) const FAREWELL: Duration = Duration::from_millis(500);

/// Nothing is asked here.
pub fn keep_if_asked() -> Option<ExitCode> {
    None
}

/// There is none.
pub(super) fn command() -> Option<Command> {
    None
}
