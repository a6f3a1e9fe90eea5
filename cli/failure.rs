//! How a command fails, which decides the program's exit code.

/// A command's way to fail, which decides the exit code.
pub enum Failure {
    /// The input is wrong: nothing was done.
    Input(anyhow::Error),
    /// Something broke on the way.
    Broken(anyhow::Error),
    /// Ctrl-c, after everything was recorded.
    Interrupted,
}

impl Failure {
    /// The input is wrong.
    pub fn input(error: impl Into<anyhow::Error>) -> Self {
        Failure::Input(error.into())
    }

    /// Something broke.
    pub fn broken(error: impl Into<anyhow::Error>) -> Self {
        Failure::Broken(error.into())
    }
}
