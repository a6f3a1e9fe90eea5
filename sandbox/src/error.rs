//! Why a program could not be run.

use std::path::PathBuf;

/// Why a program could not be run. None of these is the program's own doing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SandboxError {
    /// The machine lacks something that the sandbox needs.
    #[error(
        "this machine cannot confine programs: {step} failed: {cause}. {advice}. \
         sandbox = \"none\" runs programs without any protection"
    )]
    Unavailable {
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        cause: String,
        /// What may help.
        advice: &'static str,
    },
    /// The program is not there, or cannot be started.
    #[error("{program} cannot be run: {cause}")]
    Program {
        /// The program, as it was asked for.
        program: String,
        /// Why.
        cause: String,
    },
    /// The job or the limits make no sense.
    #[error("the job is not valid: {0}")]
    Job(String),
    /// A folder that programs should see cannot be shown to them.
    #[error("{} cannot be made readable in the sandbox: {cause}", path.display())]
    Readable {
        /// The folder.
        path: PathBuf,
        /// Why.
        cause: String,
    },
    /// The system refused something that has nothing to do with the program.
    #[error("the sandbox failed: {step}: {cause}")]
    System {
        /// What was tried.
        step: &'static str,
        /// What the system said.
        cause: String,
    },
}
